"""Recall as it is seen while an indexer leads the model, and in the shadow of the unchanged model."""

import torch

import topkit

model, tokenizer = topkit.load("reference")
prompt = topkit.task("niah-multikey:distractors=16,wording=trained").sample(tokenizer, 1024, 0)
question = prompt.questions[0]
ids = torch.tensor([[*prompt.ids, *question.ids]])
print(f"the answer is{question.answer}")
for observe in (True, "shadow"):
    with topkit.attach(model, "sign", k=16, observe=observe) as attached:
        said = model.generate(ids, max_new_tokens=len(question.answer_ids))
    recall = attached.fidelity()["recall"].to_numpy().mean()
    words = tokenizer.decode(said[0, ids.shape[1] :])
    print(f"observe={observe!s:7} recall {recall:.2f}  said{words}")
