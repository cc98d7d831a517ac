"""How many images vLLM's vision tower encodes in a conversation of three turns; for test_encodings.py.

    python encodings.py FAMILY FOLDER

Prints a JSON object: the number of images encoded by the end of each part. The engine runs in this process, where
calls of the vision tower can be counted.
"""

import json
import os
import sys
from pathlib import Path

from recipe.amft.process import prepare_process

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
prepare_process()


def main(family: str, folder: Path) -> None:
    from PIL import Image
    from vllm import LLM, SamplingParams

    from recipe.amft.data.tiny_vlm import make
    from recipe.amft.evaluation.engine import EngineSettings, plan_engine
    from verl_ext.cpu.processors import allow_images_without_torchvision, register_vllm_models

    allow_images_without_torchvision()
    register_vllm_models()
    make({"family": family, "vision_layers": 1, "num_layers": 1}, folder)
    config = json.loads((folder / "config.json").read_text())
    settings = EngineSettings(max_model_len=256, max_num_seqs=4, max_num_batched_tokens=512, kv_cache_gib=0.02)
    engine = LLM(model=str(folder), **plan_engine(settings, config, has_gpu=False, seeded=False).arguments)
    sampling = SamplingParams(temperature=1.0, max_tokens=4, seed=None, ignore_eos=True)
    encoded = count_encodings(engine)
    first, second = (Image.new("RGB", (112, 112), colour) for colour in ("navy", "maroon"))

    def converse(image: Image.Image, turns: int) -> int:
        """A conversation that shows an image once, before its first turn; images encoded so far."""
        text = "<|vision_start|><|image_pad|><|vision_end|>What is it?"
        for _ in range(turns):
            # A copy in every request, as the agent loop sends it: equal bytes are the same image.
            request = {"prompt": text, "multi_modal_data": {"image": image.copy()}}
            (output,) = engine.generate([request], sampling, use_tqdm=False)
            text += output.outputs[0].text + " No. Try again."
        return sum(encoded)

    counts = {"turns": converse(first, turns=3), "again": converse(first, turns=1)}
    counts["other"] = converse(second, turns=2)
    engine.reset_prefix_cache()
    engine.llm_engine.reset_mm_cache()
    engine.llm_engine.reset_encoder_cache()
    counts["synced"] = converse(first, turns=2)
    print(json.dumps(counts))


def count_encodings(engine) -> list[int]:
    """A list that gets the number of images of each call of the vision tower, from now on."""
    calls: list[int] = []
    tower = engine.apply_model(lambda model: model.visual)[0]
    forward = tower.forward

    def counting(pixels, grid_thw, *args, **kwargs):
        calls.append(len(grid_thw))
        return forward(pixels, grid_thw, *args, **kwargs)

    tower.forward = counting
    return calls


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
