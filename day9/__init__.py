"""The rooms of the program: README.org has a map. Written by hand, not tangled."""

import logging
import os

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # huggingface_hub reads it when it is first imported
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of a kernel it can do without
logging.getLogger("matplotlib").setLevel(logging.ERROR)  # and this of a home it cannot write to
