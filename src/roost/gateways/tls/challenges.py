"""What the gateway answers when an authority looks whether a host is ours (HTTP-01, RFC 8555, 8.3)."""

PATH = b"/.well-known/acme-challenge/"


class Challenges:
    """What the gateway answers to an authority that looks whether a host is ours."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, bytes], bytes] = {}

    def __bool__(self) -> bool:
        """Whether any is under way."""
        return bool(self._answers)

    def answer(self, host: str, target: bytes) -> bytes | None:
        """The body for GET `target` on `host` (lower case, no port); None: there is no such challenge."""
        return self._answers.get((host, target.removeprefix(PATH))) if target.startswith(PATH) else None

    def expect(self, host: str, token: str, answer: bytes) -> None:
        self._answers[host, token.encode()] = answer

    def forget(self, host: str) -> None:
        for key in [key for key in self._answers if key[0] == host]:
            del self._answers[key]
