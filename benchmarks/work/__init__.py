"""What commands that need torch do, apart from their flags in `commands`, which do not wait."""
