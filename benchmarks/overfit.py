"""A run that overfits: few questions, many times. Written by hand, not tangled.

python -m benchmarks.overfit writes the losses of act one's trainer to outputs/overfit.json: ten
minutes.
"""

from day9.errors import quieten_libraries
from day9.files import write_json
from day9.loading import choose_precision
from day9.model import load_model
from day9.plain import as_conversation, plain_trainer
from day9.prompts import default_instruction, load_tokenizer, name_labels
from day9.reading.splits import load_splits, split_off
from day9.settings import HERE, SMALL_LLAMA
from day9.training import default_learning_rate

ROWS, EPOCHS = 40, 12


def main() -> None:
    """Train, and keep trl's log."""
    quieten_libraries()
    splits = load_splits(str(HERE / "data" / "health-questions"))
    labels = sorted(splits["train"].unique("label"))
    instruction = name_labels(default_instruction(labels), labels)
    parts = [split_off(splits[name], rows, 0)[1].map(
        as_conversation, fn_kwargs={"instruction": instruction}, remove_columns=["text", "label"])
        for name, rows in (("train", ROWS), ("validation", 40))]
    model = load_model(str(SMALL_LLAMA), choose_precision()[0])
    trainer = plain_trainer(model, load_tokenizer(str(SMALL_LLAMA)), *parts,
                            str(HERE / "outputs" / "overfit"), EPOCHS,
                            default_learning_rate(model))
    trainer.train()
    write_json(HERE / "outputs" / "overfit.json", trainer.state.log_history)


if __name__ == "__main__":
    main()
