"""Installs AlphaLLM. The ranges reach from Colab's TPU image to the newest; constraints.txt has pins."""

import setuptools

REQUIREMENTS = [
    "jax>=0.7.2",
    "flax>=0.11.2",
    "optax>=0.2.5",
    "mctx>=0.0.6",
    "chex>=0.1.90",
    "numpy>=1.26",
    "orbax-checkpoint>=0.11.20",
    "safetensors>=0.5",
    "tensorflow-datasets>=4.9.8",
    "array_record>=0.7",  # the file format of our datasets: tensorflow-datasets reads it without TensorFlow
    "importlib_resources>=6",  # tensorflow-datasets needs it and does not say so
    "tokenizers>=0.21",
    "huggingface_hub>=0.30",  # convert --from=<a name on the Hugging Face hub>
    "jinja2>=3.1",  # chat templates
    "math-verify>=0.9",  # grades answers in text
    "latex2sympy2_extended>=1.11",  # its parser, which the grader calls too; math-verify pins the version
    "absl-py>=2.1",
    "rich>=13",
    "tensorboardX>=2.6.2",
    "matplotlib>=3.8",
]

setuptools.setup(
    name="alphallm",
    version="0.1.0",
    description="AlphaZero-style tree search and training for language models, in JAX",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=setuptools.find_namespace_packages(include=["alphallm", "alphallm.*"]),
    package_data={"alphallm": ["tasks/*/*.txt", "tasks/*/*.md", "tasks/*/*.bib", "tasks/*/*.csv", "evaluation/*.html"]},
    install_requires=REQUIREMENTS,
    extras_require={
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        "parity": ["torch>=2.6", "transformers>=4.51"],  # what the tests of models/huggingface.py compare with
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6",
            "ruff>=0.12",
            "mypy>=1.15",
            "nbclient>=0.10",
            "ipykernel>=6",
        ],
    },
)
