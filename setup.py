import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'VERSION = "(.+)"', (HERE / "apd/about.py").read_text()).group(1)


def long_description() -> str:
    """The README without what only a clone has: its pictures, and the targets of its links."""
    text = (HERE / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"!\[[^]]*\]\((?!http)[^)]*\)", "", text)
    return re.sub(r"\[([^]]*)\]\((?!http|#)[^)]*\)", r"\1", text)


setup(
    name="apd-clip",
    version=VERSION,
    description="Adversarially robust prompt learning of CLIP: a plugin for Dassl / CoOp",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="MIT",
    author="The apd-clip contributors",
    keywords="CLIP, prompt learning, adversarial robustness, distillation, Dassl, CoOp",
    python_requires=">=3.10",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",  # those that the tests have run on
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Operating System :: Microsoft :: Windows",  # but for sweeps and shards
    ],
    # Everything importable lives under one name, so that an installation never collides with a
    # CoOp checkout's own trainers/ and datasets/, nor with Hugging Face's datasets.
    package_dir={
        "apd": "apd",
        "apd.trainers": "trainers",
        "apd.datasets": "datasets",
        "apd.configs": "configs",
    },
    packages=[
        *find_packages(include=["apd", "apd.*"]),
        "apd.trainers",
        "apd.datasets",
        "apd.configs",
    ],
    package_data={"apd": ["assets/*"], "apd.configs": ["**/*.yaml"]},
    install_requires=[
        "torch>=2.6",  # reads others' checkpoints safely (CVE-2025-32434)
        "torchvision>=0.21",
        "openai-clip>=1.0.1",
        "setuptools<82",  # openai-clip imports pkg_resources, which setuptools 82 dropped
        "ftfy",
        "regex",
        "yacs>=0.1.8",
        "tabulate>=0.9",
        "jinja2>=3",
        "tqdm>=4.60",
        "numpy>=1.23",
        "pillow>=9.1",
        "scikit-learn>=1.2",
        "scipy>=1.8",  # the .mat files that two splits are made from
        "torchattacks>=3.5",
        "matplotlib>=3.6",
        "safetensors>=0.4",  # what a classifier is saved in
    ],
    extras_require={
        "test": [
            "pytest>=7",
            "pytest-xdist>=3",
            "wheel",  # setuptools before 70.1 builds none without it
            "hypothesis>=6",
            "tensorboard>=2.10",
            "safetensors>=0.4",
            "ruff~=0.17.0",
            "mypy~=2.4",
        ],
        "mutation": ["cosmic-ray>=8.3"],  # scripts/mutation.sh
        # CLIPs of others: MODEL.BACKBONE.NAME hf:..., openclip:..., folders with safetensors
        "hf": ["huggingface_hub>=0.20", "safetensors>=0.4"],
        "openclip": ["open_clip_torch>=2.24", "safetensors>=0.4"],
        "tensorboard": ["tensorboard>=2.10"],
        # attack libraries that tests hold the classifier of apd.load against
        "attacks": ["foolbox>=3.3", "adversarial-robustness-toolbox>=1.17", "pyautoattack>=0.2"],
        # apd-export --format onnx
        "onnx": ["onnx>=1.16", "onnxruntime>=1.17", "onnxscript>=0.2"],
        "demo": ["gradio>=6"],  # apd-demo
        "browser": ["playwright>=1.40"],  # drives Chromium in tests of its page and of the report
        "notebook": ["nbclient>=0.10", "ipykernel>=6"],  # docs/quickstart.ipynb
        "ray": ["ray>=2.9"],
        "slurm": ["submitit>=1.5"],
    },
    entry_points={
        "console_scripts": [
            "apd-train = apd.train.command:main",
            "apd-sweep = apd.sweep.command:main",
            "apd-table = apd.tables.command:main",
            "apd-plot = apd.figures.command:main",
            "apd-report = apd.report.command:main",
            "apd-doctor = apd.doctor.command:main",
            "apd-eval = apd.arguments.evaluate:main",
            "apd-predict = apd.predict.command:main",
            "apd-demo = apd.demo.command:main",
            "apd-show = apd.show.command:main",
            "apd-convert = apd.arguments.convert:main",
            "apd-export = apd.export.command:main",
            "apd-configs = apd.config:print_folder",
        ]
    },
)
