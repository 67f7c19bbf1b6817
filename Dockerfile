# fastxfer on the CPU: docker build -t fastxfer . && docker run --rm -v "$PWD:/work" fastxfer demo --out demo
# For a GPU take a CUDA development image with Python as BASE, and build with --build-arg FASTXFER_CUDA=1.
ARG BASE=python:3.12-slim
FROM ${BASE}
ARG FASTXFER_CUDA=0
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml setup.py README.md LICENSE /source/
COPY csrc /source/csrc
COPY fastxfer /source/fastxfer
COPY pretrain /source/pretrain
RUN FASTXFER_CUDA=${FASTXFER_CUDA} pip install --no-cache-dir "/source[demo,xray,s3]" && rm -rf /source
WORKDIR /work
ENTRYPOINT ["fastxfer"]
CMD ["--help"]
