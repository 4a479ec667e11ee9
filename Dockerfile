# The library with the versions that its tests pass with, for CPUs or for NVIDIA GPUs:
#   docker build --target cpu -t wsss-afa:cpu .
#   docker build --target cuda -t wsss-afa:cuda .
#   docker run --rm -v "$PWD:/work" wsss-afa:cpu train +experiment=demo
#   docker run --rm --gpus all --shm-size 8g -v "$PWD:/work" wsss-afa:cuda train +experiment=voc data.root=VOC2012
FROM python:3.11-slim AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=/build/constraints.txt
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY conf conf
COPY src src
RUN useradd --create-home --uid 1000 user && install --directory --owner=user /work

FROM base AS cpu
# constraints.txt has the versions
# hadolint ignore=DL3013
RUN pip install --extra-index-url https://download.pytorch.org/whl/cpu ".[export,wandb,tensorboard]"
USER 1000
WORKDIR /work
ENTRYPOINT ["wsss-afa"]

# torch's own wheels bring the CUDA libraries; the machine brings the driver
FROM base AS cuda
# constraints.txt has the versions
# hadolint ignore=DL3013
RUN pip install ".[export,wandb,tensorboard,sweep]"
USER 1000
WORKDIR /work
ENTRYPOINT ["wsss-afa"]
