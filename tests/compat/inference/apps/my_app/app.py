"""Keeps what it was given, and ends its session when it has cleaned up."""

import moorage_session


class App:
    async def setup(self):
        self.items = []

    async def run(self, input):
        action = input["action"]
        if action == "cleanup":
            moorage_session.end()
        elif action == "process":
            self.items.append(input.get("id", input.get("data")))
        elif action not in ("initialize", "init", "check"):
            raise ValueError(f"there is no action {action}")
        return {"action": action, "items": list(self.items)}
