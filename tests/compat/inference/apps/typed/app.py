"""As apps of inference.sh are written: models for input and output, files, and the package's own base class."""

from inferencesh import BaseApp, BaseAppInput, BaseAppOutput, File


class AppInput(BaseAppInput):
    prompt: str
    image: File | None = None


class AppOutput(BaseAppOutput):
    text: str
    calls: int
    report: File | None = None


class App(BaseApp):
    async def setup(self):
        self.calls = 0

    async def run(self, app_input: AppInput) -> AppOutput:
        self.calls += 1
        seen = ""
        if app_input.image is not None:
            with open(app_input.image.path, "rb") as file:
                seen = file.read().decode()
        with open("/home/work/report.txt", "w") as file:
            file.write(f"{app_input.prompt} {seen}")
        return AppOutput(text=app_input.prompt.upper(), calls=self.calls, report=File(path="/home/work/report.txt"))

    async def count(self, app_input: AppInput) -> AppOutput:
        return AppOutput(text="so far", calls=self.calls)

    async def unload(self):
        pass
