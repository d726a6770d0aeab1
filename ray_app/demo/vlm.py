"""Training of the demo's vision-language model from scratch: an Idefics3 of half a million parameters.

`python -m ray_app.demo.vlm --out ray_app/demo/models/vlm --seed 1` (what `make demo-models` calls) draws images from
other seeds than the demo's world, trains, measures on unseen ones, and writes the model with RECIPE.json. Idefics3, since
it runs both in transformers and in vLLM on a CPU. Shapes: B batch, P pixels per side.
"""

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ray_app.demo.concepts import COLOURS, OBJECTS, SETTINGS, Concept, draw_concept
from ray_app.demo.render_images import draw_image
from ray_app.demo.texts import caption
from ray_app.demo.tokens import descend

PROMPT = "Describe the picture."
SIDE = 64  # pixels that the model sees; images are drawn at 128, as in the world
PATCH = 8
WIDTH = 96
SHUFFLE = 2  # 2 x 2 patches become one token for the language model
NUM_IMAGE_TOKENS = (SIDE // PATCH // SHUFFLE) ** 2
NUM_IMAGES = 40_000
LOOK_EPOCHS = 6  # epochs of classification of images
SPEAK_EPOCHS = 2  # epochs of captioning
BATCH = 128
MAX_CAPTION_TOKENS = 14
SPECIAL_TOKENS = (
    "<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<image>", "<fake_token_around_image>", "<global-img>",
    "<end_of_utterance>", *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)  # fmt: skip
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLACES = tuple(sorted({place for places in SETTINGS.values() for place in places}))
CLASSES = {"object": OBJECTS, "colour": COLOURS, "setting": PLACES}


def build_processor() -> Any:
    """Tokenizer of the captions' words and the image processor, in the layout that transformers and vLLM read."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import Idefics3ImageProcessorPil, Idefics3Processor, PreTrainedTokenizerFast

    said = [caption(Concept(o, c, "", "", place)) for o in OBJECTS for c in COLOURS for place in PLACES]
    words = sorted({word for text in [*said, PROMPT, "user assistant system"] for word in text.split()})
    vocabulary = {word: i for i, word in enumerate([*SPECIAL_TOKENS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL_TOKENS[2:]), model_max_length=256, padding_side="left",
    )  # fmt: skip
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=False
    )
    return Idefics3Processor(images, fast, image_seq_len=NUM_IMAGE_TOKENS, chat_template=CHAT_TEMPLATE)


def build_model(processor: Any) -> Any:
    """The randomly initialised model."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    ids = processor.tokenizer.convert_tokens_to_ids
    text = {
        "model_type": "llama", "vocab_size": len(processor.tokenizer), "hidden_size": WIDTH, "num_hidden_layers": 2,
        "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": WIDTH // 3, "intermediate_size": 2 * WIDTH,
        "max_position_embeddings": 256, "tie_word_embeddings": True, "pad_token_id": ids("<pad>"),
        "eos_token_id": ids("<|im_end|>"), "bos_token_id": ids("<|im_start|>"),
    }  # fmt: skip
    vision = {
        "hidden_size": WIDTH, "intermediate_size": 3 * WIDTH, "num_hidden_layers": 3, "num_attention_heads": 3,
        "image_size": SIDE, "patch_size": PATCH,
    }  # fmt: skip
    model = Idefics3ForConditionalGeneration(
        Idefics3Config(
            vision_config=vision, text_config=text, scale_factor=SHUFFLE, image_token_id=ids("<image>"),
            pad_token_id=ids("<pad>"), tie_word_embeddings=True,
        )
    )  # fmt: skip
    model.generation_config.eos_token_id = ids("<|im_end|>")
    model.generation_config.pad_token_id = ids("<pad>")
    return model


def draw_many(seeds: Sequence[int]) -> tuple[np.ndarray, list[Concept]]:
    """Images as the processor scales them, uint8 (B, 3, P, P), and their classes; one seed each."""
    processor = build_processor().image_processor
    pixels, concepts = [], []
    for seed in seeds:
        concept, picture = _draw(seed)
        concepts.append(concept)
        values = np.asarray(processor(images=[[picture]], return_tensors="np")["pixel_values"])[0, 0]
        pixels.append(np.round((values * 0.5 + 0.5) * 255).astype(np.uint8))
    return np.stack(pixels), concepts


def _draw(seed: int) -> tuple[Concept, Any]:
    rng = np.random.default_rng([seed, 90_210])  # not the world's streams
    concept = draw_concept(rng)
    return concept, draw_image(concept, rng)


def draw_all(count: int, first_seed: int, workers: int) -> tuple[np.ndarray, list[Concept]]:
    """`draw_many` on several processes."""
    shares = [list(range(first_seed + start, first_seed + min(start + 500, count))) for start in range(0, count, 500)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        parts = pool.map(draw_many, shares)
    return np.concatenate([pixels for pixels, _ in parts]), [concept for _, concepts in parts for concept in concepts]


class Looker:
    """The vision half with three classifiers on top, which are dropped after training."""

    def __init__(self, model: Any) -> None:
        from torch import nn

        self.model = model
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, len(values)) for name, values in CLASSES.items()})

    def tokens(self, pixels: Any) -> Any:
        """(B, 3, P, P) float -> (B, NUM_IMAGE_TOKENS, WIDTH), the input of the language model."""
        inner = self.model.model
        return inner.connector(inner.vision_model(pixel_values=pixels).last_hidden_state)

    def loss(self, pixels: Any, classes: dict[str, Any]) -> Any:
        """Mean cross-entropy of object, colour and setting."""
        from torch.nn.functional import cross_entropy

        seen = self.tokens(pixels).mean(1)
        losses = [cross_entropy(head(seen), classes[name]) for name, head in self.heads.items()]
        return sum(losses) / len(losses)


def train(
    model: Any, processor: Any, pixels: np.ndarray, concepts: list[Concept], seed: int, epochs: tuple[int, int]
) -> list[float]:
    """Train in two phases, classification and captioning. Returns the loss of each step."""
    import torch

    looker = Looker(model)
    classes = {
        name: torch.tensor([values.index(getattr(concept, name)) for concept in concepts])
        for name, values in CLASSES.items()
    }
    prompt, answers = _token_ids(processor, concepts)
    rng = np.random.default_rng(seed)
    log: list[float] = []
    for phase, num_epochs in zip(("look", "speak"), epochs, strict=True):
        params = [*model.parameters(), *looker.heads.parameters()]
        steps = num_epochs * math.ceil(len(concepts) / BATCH)
        adamw = torch.optim.AdamW(params, lr=2e-3, weight_decay=0.02, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.OneCycleLR(adamw, max_lr=2e-3, total_steps=steps, pct_start=0.15)
        order = np.concatenate([rng.permutation(len(concepts)) for _ in range(num_epochs)])
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            batch = _augmented(torch.from_numpy(pixels[rows]).float() / 127.5 - 1.0, rng)
            wanted = {name: values[rows] for name, values in classes.items()}
            look = phase == "look"
            loss = looker.loss(batch, wanted) if look else _caption_loss(model, batch, prompt, answers[rows])
            log.append(descend(loss, params, adamw, schedule))
            if len(log) % 100 == 0:
                print(phase, len(log), round(float(np.mean(log[-100:])), 4), flush=True)
    return log


def measure(model: Any, processor: Any, count: int, first_seed: int) -> dict[str, float]:
    """Share of held-out images whose greedy caption names the right object, colour, setting, and object with colour."""
    import torch

    hits = dict.fromkeys(("object", "colour", "setting", "object_and_colour", "caption"), 0)
    text = _prompt(processor)
    for start in range(0, count, 100):
        seeds = range(first_seed + start, first_seed + min(start + 100, count))
        concepts, drawn = zip(*map(_draw, seeds), strict=True)
        images = [[picture] for picture in drawn]
        inputs = processor(text=[text] * len(images), images=images, padding=True, return_tensors="pt")
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=MAX_CAPTION_TOKENS, do_sample=False)
        answers = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for concept, said in zip(concepts, answers, strict=True):
            for name, is_right in _right(concept, said).items():
                hits[name] += is_right
    return {name: round(number / count, 4) for name, number in hits.items()}


def _right(concept: Concept, said: str) -> dict[str, bool]:
    """Correct parts of a caption: replacing the part by another value would make another caption."""
    words, wanted = said.split(), caption(concept).split()
    place = caption(Concept(concept.object, concept.colour, "", "", concept.setting)).split(f"{concept.colour} ")[1]
    thing = " ".join(wanted[wanted.index(concept.colour) + 1 :])
    name = thing[: len(thing) - len(_place_of(thing))].strip()
    right = {
        "object": f" {name} " in f" {said} ",
        "colour": concept.colour in words,
        "setting": said.endswith(_place_of(place)),
        "caption": said == caption(concept),
    }
    return right | {"object_and_colour": right["object"] and right["colour"]}


def _place_of(text: str) -> str:
    """The end of a caption that names the setting: from its last preposition on."""
    words = text.split()
    last = max(i for i, word in enumerate(words) if word in ("in", "at", "on", "by"))
    return " ".join(words[last:])


def _prompt(processor: Any) -> str:
    said = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    text: str = processor.apply_chat_template([{"role": "user", "content": said}], add_generation_prompt=True)
    return text


def _token_ids(processor: Any, concepts: list[Concept]) -> tuple[Any, Any]:
    """The prompt's ids (T,), image tokens included, and each caption's ids (N, T), closed and padded with -100."""
    import torch
    from PIL import Image

    blank = Image.new("RGB", (SIDE, SIDE))
    prompt = processor(text=[_prompt(processor)], images=[[blank]], return_tensors="pt")["input_ids"][0]
    tokenizer = processor.tokenizer
    rows = [[*tokenizer(caption(c), add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for c in concepts]
    answers = torch.full((len(rows), max(map(len, rows))), -100)
    for i, row in enumerate(rows):
        answers[i, : len(row)] = torch.tensor(row)
    return prompt, answers


def _caption_loss(model: Any, pixels: Any, prompt: Any, answers: Any) -> Any:
    import torch

    ids = torch.cat([prompt.expand(len(answers), -1), answers.clamp(min=0)], 1)
    labels = torch.cat([torch.full((len(answers), len(prompt)), -100), answers], 1)
    mask = torch.ones_like(ids)
    mask[:, len(prompt) :] = (answers >= 0).long()
    return model(input_ids=ids, attention_mask=mask, pixel_values=pixels[:, None], labels=labels).loss


def _augmented(pixels: Any, rng: np.random.Generator) -> Any:
    """Shift images by up to two pixels: the batch has one shift, which is enough over thousands of batches."""
    import torch

    down, right = (int(shift) for shift in rng.integers(-2, 3, 2))
    padded = torch.nn.functional.pad(pixels, (2, 2, 2, 2), mode="replicate")
    return padded[:, :, 2 + down : 2 + down + SIDE, 2 + right : 2 + right + SIDE]


def main() -> None:
    """Draw, train, measure and write."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("ray_app/demo/models/vlm"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chose")
    parser.add_argument("--pictures", type=int, default=NUM_IMAGES)
    parser.add_argument("--epochs", type=int, nargs=2, default=(LOOK_EPOCHS, SPEAK_EPOCHS), metavar=("LOOK", "SPEAK"))
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    started = time.perf_counter()
    processor = build_processor()
    model = build_model(processor)
    pixels, concepts = draw_all(args.pictures, args.seed * 10_000_000, args.threads or torch.get_num_threads())
    drawn_sec = time.perf_counter() - started
    model.train()
    losses = train(model, processor, pixels, concepts, args.seed, tuple(args.epochs))
    model.eval()
    trained_sec = time.perf_counter() - started - drawn_sec
    found = measure(model, processor, 1000, args.seed * 10_000_000 + 5_000_000)
    recipe = {
        "code": "ray_app/demo/vlm.py", "seed": args.seed, "pictures": args.pictures, "epochs": list(args.epochs),
        "steps": len(losses), "parameters": sum(p.numel() for p in model.parameters()), "drawing_sec": round(drawn_sec),
        "training_sec": round(trained_sec), "final_loss": round(float(np.mean(losses[-50:])), 4), "unseen_pictures": 1000,
        "right": found,
    }  # fmt: skip
    model.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    (args.out / "RECIPE.json").write_text(json.dumps(recipe, indent=1) + "\n")
    print(json.dumps(recipe))


if __name__ == "__main__":
    main()
