"""Runs in lm-eval's environment: reads prompts and answers from standard input, writes its own verdicts to a file."""

import json
import sys

import langdetect
from lm_eval.tasks.ifeval import utils

langdetect.DetectorFactory.seed = 0  # which lm-eval leaves to chance
told = json.load(sys.stdin)
said = []
for prompt in told:
    doc = utils.InputExample(0, prompt["instructions"], "", prompt["kwargs"])
    said.append(
        [
            utils.test_instruction_following_strict(doc, prompt["answer"]).follow_instruction_list,
            utils.test_instruction_following_loose(doc, prompt["answer"]).follow_instruction_list,
        ]
    )
with open(sys.argv[1], "w") as file:
    json.dump(said, file)
