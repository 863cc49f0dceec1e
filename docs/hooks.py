"""What MkDocs does not do by itself: the packages' READMEs as pages, formulas as MathML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
WRITTEN_LATER = {"Results": "ablations.md"}  # stands in the navigation once it is there


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the fence `math`, which needs no script and no font from elsewhere."""
    fence = {"name": "math", "class": "math", "format": _mathml}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    for section, page in WRITTEN_LATER.items():
        if Path(config.docs_dir, page).exists():
            next(entry[section] for entry in config.nav or [] if section in entry).append(page)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the READMEs under the paths that they have in the repository."""
    for entry in _pages(config.nav):
        source = ROOT / entry
        if files.get_file_from_path(entry) is None and source.exists():
            files.append(File.generated(config, entry, abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links of a README to docs/ at the page, which stands at the top here."""
    if page.file.generated_by is None:
        return markdown
    for later in WRITTEN_LATER.values():
        if files.get_file_from_path(later) is None:  # the text of the link alone
            markdown = re.sub(rf"\[([^\]]+)\]\(\.\./docs/{re.escape(later)}\)", r"\1", markdown)
    return re.sub(r"\]\(((?:\.\./)+)docs/", r"](\1", markdown)


def _pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    entries = nav.values() if isinstance(nav, dict) else nav or []
    return [page for entry in entries for page in _pages(entry)]


def _mathml(source: str, language: str, css_class: str, *_: Any, **__: Any) -> str:
    return f'<div class="{css_class}">{convert(source, display="block")}</div>'
