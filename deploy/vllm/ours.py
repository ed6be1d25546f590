"""The answers of our own engine, and how close its choices were: `python ours.py FOLDER` writes FOLDER/ours.json."""

import json
import sys
from pathlib import Path

import yaml
from cases import CASES, QUESTIONS, TOKENS

from trimtab import LLM, EngineSettings, SamplingParams


def main(place: Path) -> None:
    """Answer every question in every way."""
    settings = EngineSettings.model_validate(yaml.safe_load((place / "trimtab.yaml").read_text())["engine"])
    told = {}
    with LLM(settings=settings) as llm:
        prompts = [
            list(llm.vocabulary.chat(({"role": "user", "content": each},), add_generation_prompt=True))
            for each in QUESTIONS
        ]
        for case in CASES:
            sampling = SamplingParams(temperature=0.0, max_tokens=TOKENS, **case.penalties)
            decoding = {**(case.decoding or {"strategy": "sample"}), "trace": "tokens"}
            results = llm.generate(prompts, sampling, decoding=decoding, progress=False)
            told[case.name] = [
                {"ids": list(choice.token_ids), "top": [dict(each.top_steered) for each in choice.trace]}
                for choice in (result.choices[0] for result in results)
            ]
    (place / "ours.json").write_text(json.dumps({"prompts": prompts, "answers": told}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
