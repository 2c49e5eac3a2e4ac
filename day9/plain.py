"""The plain trainer: what trl offers, with little but its defaults. Tangled from README.org."""

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from day9.model import lora_config


def as_conversation(row: dict[str, str], instruction: str) -> dict[str, list[dict[str, str]]]:
    """A row in trl's conversational prompt-completion format."""
    return {"prompt": [{"role": "user", "content": f"{instruction}\n\n{row['text']}"}],
            "completion": [{"role": "assistant", "content": row["label"]}]}

def plain_trainer(model, tokenizer, train: Dataset, validation: Dataset | None, folder: str,
                  epochs: int, learning_rate: float, seed: int = 42) -> SFTTrainer:
    """trl's trainer for rows in its own format, with little but its defaults."""
    cpu = {} if torch.cuda.is_available() else {
        "use_cpu": True, "bf16": False, "activation_checkpointing": False}
    config = SFTConfig(
        output_dir=folder, num_train_epochs=epochs, learning_rate=learning_rate, seed=seed,
        logging_steps=1, eval_strategy="no" if validation is None else "epoch",
        save_strategy="no", report_to="none", disable_tqdm=True, **cpu)
    return SFTTrainer(model=model, args=config, train_dataset=train, eval_dataset=validation,
                      processing_class=tokenizer, peft_config=lora_config(rank=16))

@torch.no_grad()
def ask(model, tokenizer, texts: list[str], instruction: str, most: int = 20) -> list[str]:
    """The model's answer to each text: the likeliest token each time, at most `most` of them."""
    chats = [[{"role": "user", "content": f"{instruction}\n\n{text}"}] for text in texts]
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt",
        tokenizer_kwargs={"padding_side": "left"}).to(model.device)
    answers = model.eval().generate(**batch, max_new_tokens=most, do_sample=False)
    start = batch["input_ids"].shape[1]
    return [answer.strip() for answer in
            tokenizer.batch_decode(answers[:, start:], skip_special_tokens=True)]
