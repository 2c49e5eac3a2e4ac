"""The plain trainer: trl's own, as its documentation has it. Tangled from README.org."""

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
    """trl's trainer for rows in its own format; looks at the validation rows ten times."""
    cpu = {} if torch.cuda.is_available() else {
        "use_cpu": True, "bf16": False, "activation_checkpointing": False}
    config = SFTConfig(
        output_dir=folder, seed=seed, num_train_epochs=epochs, per_device_train_batch_size=8,
        learning_rate=learning_rate, lr_scheduler_type="linear",  # which falls to zero
        logging_steps=0.05, eval_steps=0.1,  # of all steps
        eval_strategy="no" if validation is None else "steps",
        save_strategy="no", report_to="none", disable_tqdm=True, **cpu)
    return SFTTrainer(model=model, args=config, train_dataset=train, eval_dataset=validation,
                      processing_class=tokenizer, peft_config=lora_config(rank=16))
