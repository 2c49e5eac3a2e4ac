"""Where does fine-tuning win? It and its rivals on any data. Written by hand, not tangled.

python -m benchmarks.where measures the cells that outputs/where.json lacks, each written as it
comes; with --data FOLDER --rows N it measures those of one set.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers
from datasets import Dataset, DatasetDict, concatenate_datasets
from peft import get_peft_model
from scipy.special import softmax

from day9.baselines import fit_embeddings, fit_tfidf
from day9.checkpoints import best_epoch
from day9.classifier import Classifier
from day9.errors import quieten_libraries
from day9.files import digests, sha256, write_json
from day9.loading import choose_precision, load_embedder
from day9.metrics import compute_metrics
from day9.model import add_adapter, four_bits, keep_trainable, load_model, lora_config
from day9.prompts import default_instruction, load_tokenizer, make_prompt
from day9.reading.splits import load_splits, read_split, split_off
from day9.report import SYSTEM_NAMES, draw
from day9.settings import HERE, SMALL_LLAMA, Settings
from day9.training import default_epochs, train, training_rows

HEAD_LEARNING_RATE = 1e-3  # the best on validation of 2e-4, 5e-4 and 1e-3, 32 messages
LEAST_VALIDATION = 40  # rows to choose an epoch and a C by, or a fifth of those to train on
SYSTEMS_USUAL = ("tfidf", "embeddings", "fine_tuned")

SETS = {  # where each comes from: address and commit; what decides; rows to train on, and draws
    "health-questions": (
        "https://github.com/kearnsw/question-type-classification at 50b7985",
        "what is asked for", (80, 320, 1000), 3),
    "patient-messages": ("written for this document", "topic", (32, 320, 880), 3),
    "trec6": ("https://github.com/trangnt08/q_class_en at 3ffc1b2", "what is asked for", (1000,), 1),
    "scicite": ("https://github.com/allenai/scibert at 06793f7", "what a citation is for",
                (1000,), 1),
    "snips": ("https://github.com/sonos/nlu-benchmark at b86ac7f", "topic", (1000,), 1),
    "medical_abstracts": ("https://github.com/sebischair/Medical-Abstracts-TC-Corpus at 70a2d91",
                          "topic, long texts", (1000,), 1),
    "banking77": ("https://github.com/PolyAI-LDN/task-specific-datasets at 57ec275", "topic",
                  (1540,), 1)}
HEAD_ROWS = {"health-questions": (80, 1000), "patient-messages": (32, 880)}
