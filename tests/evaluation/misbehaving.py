"""Environments that break their contract, or keep it in unusual ways; tasks name them by import path."""


def say(text, reset_context=False, images=()):
    return {"text": text, "images": list(images), "reset_context": reset_context}


class Echo:
    """Asks for "yes" until it comes; `behaviour` says what goes wrong."""

    def __init__(self, behaviour=""):
        self.behaviour = behaviour

    def reset(self, seed, options=None):
        if self.behaviour == "reset raises":
            raise RuntimeError("no such problem")
        images = ["picture"] if self.behaviour == "images" else []
        return say("Say yes.", images=images), {}

    def step(self, text):
        if self.behaviour == "step raises":
            raise RuntimeError("the checker broke")
        if self.behaviour == "stop iteration":
            return next(iter(()))
        solved = text.strip() == "yes"
        if self.behaviour == "no success":
            return say(""), 0.0, True, False, {}
        if self.behaviour == "images later":
            return say("again", reset_context=True, images=["picture"]), 0.0, False, False, {}
        return say("" if solved else "No."), float(solved), solved, False, {"success": solved}


class Asynchronous(Echo):
    """Its `step` blocks, so that only `step_async` may be called."""

    def reset(self, seed, options=None):
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say yes."}]
        return {**say("Say yes."), "messages": messages}, {}

    def step(self, text):
        raise AssertionError("step() in an event loop")

    async def step_async(self, text):
        solved = text.strip() == "yes"
        return say(""), float(solved), solved, not solved, {"success": solved, "num_grader_timeouts": int(not solved)}
