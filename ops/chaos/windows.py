"""The failpoints of a campaign: armed by a file each, fired when the file was renamed by whoever died there."""

from pathlib import Path

from routing.failpoints import Window


class Windows:
    """Arms windows in a folder that the fleet's processes were given (routing.failpoints)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)

    def arm(self, window: Window) -> None:
        """The next process to come there dies."""
        (self.folder / window).touch()

    def armed(self) -> set[str]:
        """Windows that nobody has come to yet."""
        return {path.name for path in self.folder.iterdir() if "." not in path.name}

    def fired(self) -> list[tuple[Window, int]]:
        """Windows at which a process died since the last call, each with its pid."""
        found = []
        for path in sorted(self.folder.glob("*.*")):
            window, _, pid = path.name.partition(".")
            found.append((Window(window), int(pid)))
            path.unlink()
        return found
