# fastxfer on the CPU: docker build -t fastxfer . && docker run --rm -v "$PWD:/work" fastxfer demo --out demo
# For a GPU take a CUDA development image with Python as BASE, and build with --build-arg FASTXFER_CUDA=1. Without one, leave out
# torch's CUDA libraries with --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu.
ARG BASE=python:3.12-slim
FROM ${BASE}
ARG FASTXFER_CUDA=0
ARG PIP_EXTRA_INDEX_URL
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml setup.py README.md LICENSE /source/
COPY csrc /source/csrc
COPY fastxfer /source/fastxfer
COPY pretrain /source/pretrain
RUN FASTXFER_CUDA=${FASTXFER_CUDA} pip install --no-cache-dir "/source[demo,xray,s3]" && rm -rf /source
WORKDIR /work
ENTRYPOINT ["fastxfer"]
CMD ["--help"]
