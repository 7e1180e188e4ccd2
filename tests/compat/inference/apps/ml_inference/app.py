"""Loads a model once, and predicts with it from then on."""


class App:
    model = None
    loads = 0

    async def run(self, input):
        if input["action"] == "load_model":
            self.model, self.loads = input["model"], self.loads + 1
            return {"loaded": self.model}
        if self.model is None:
            raise RuntimeError("no model is loaded")
        return {"model": self.model, "loads": self.loads, "prediction": input["data"] * 2}
