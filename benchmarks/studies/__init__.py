"""Studies of this project itself. They are part of the repository and not of the wheel."""
