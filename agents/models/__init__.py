"""Engines behind `agents.base.LanguageModel`."""
