"""Packaging of peftjax. Every dependency has a bound and a reason."""

from pathlib import Path

from setuptools import find_packages, setup

CORE = [
    "jax>=0.10,<0.11",  # the compiler; minor releases move semi-public names (jax.interpreters.partial_eval)
    "flax>=0.12.6,<0.13",  # Linen: modules, nn.scan, nn.remat
    "optax>=0.2.8,<0.3",  # optimisers and schedules
    "orbax-checkpoint>=0.12.6,<0.13",  # checkpoints of sharded arrays; its v1 interface is still moving
    "tensorflow-datasets>=4.9.10,<4.10",  # dataset builders; used without TensorFlow, which the next release may undo
    "array_record>=0.8.3,<0.9",  # the file format of the stored data sets
    "importlib_resources>=6.4,<8",  # undeclared need of tensorflow-datasets when a builder lies in a package
    "absl-py>=2.3,<3",  # flags and logging of the scripts
    "ml_collections>=1.1,<2",  # configs as Python files with overrides
    "llvmlite>=0.46,<0.51",  # fused products with quantised kernels on a CPU, compiled for it when first needed
    "numpy>=2.0,<3",  # host arrays
    "scipy>=1.16,<2",  # statistical tests and distributions; jax needs it too
    "tokenizers>=0.22,<0.24",  # tokenizer.json and byte-level BPE
    "safetensors>=0.6,<1",  # Hugging Face weights
    "gguf>=0.17,<0.20",  # llama.cpp weights and their block formats
    "jinja2>=3.1.6,<4",  # chat templates, sandboxed; older ones have sandbox escapes
    "huggingface_hub>=1.0,<3",  # download of hub ids
    "hassil==3.12.1",  # parses Home Assistant's sentence templates; pinned, since the built records depend on it
    "babel==2.18.0",  # .po files and names of countries and languages; pinned, since the built records depend on it
    "PyYAML>=6.0.2,<7",  # trivia and small-talk lists
    "unicode-rbnf==2.4.1",  # numbers as words for hassil; pinned for the same reason
    "tensorboardX>=2.6.4,<3",  # event files without TensorFlow
    "matplotlib>=3.9,<4",  # curves of the report
    "threadpoolctl>=3.5,<4",  # threads of LAPACK, which spin where cores are busy
    "tqdm>=4.66,<5",  # the progress bar
    "rich>=13.9,<16",  # the live table of a sweep; flax brings it
]

setup(
    name="peftjax",
    version="0.1.0",
    description="LoRA and adapters as parameter-tree transformations on a functional Flax transformer",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["peftjax", "peftjax.*"]),
    install_requires=CORE,
    entry_points={"console_scripts": ["peftjax = peftjax.__main__:main"]},
    extras_require={
        "test": [
            "pytest>=8.4,<10",  # the runner
            "pytest-xdist>=3.6,<4",  # one process a core: half the time
            "hypothesis>=6.130,<7",  # properties over generated input
            "ruff>=0.12,<1",  # the linter that the house style is checked with
        ],
        "evals": [
            "lm-eval>=0.4.13,<0.5",  # EleutherAI's evaluation harness, whose tasks run on models here
        ],
        "optuna": ["optuna>=5.0,<6"],  # hyper-parameter search
        "slurm": ["submitit>=1.5.3,<2"],  # sweeps on Slurm clusters
        "ray": ["ray>=2.50,<3"],  # sweeps on Ray clusters
        "sky": ["skypilot>=0.14,<0.15"],  # sweeps on clouds and TPU pods; its command alone is used, in any environment
        "gpu": ["jax[cuda13]>=0.10,<0.11"],  # NVIDIA GPUs, CUDA 13
        "tpu": ["jax[tpu]>=0.10,<0.11"],  # Cloud TPUs
    },
)
