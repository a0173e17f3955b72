# An emitted repository on Triton's own image:
#   docker build --build-arg TRITON_IMAGE=<Triton's image, a -py3 tag> --build-arg REPOSITORY=build/demo/repository -t demo .
#   docker run --rm -p 8000-8002:8000-8002 --shm-size 1g demo
ARG TRITON_IMAGE
FROM ${TRITON_IMAGE}

ARG REPOSITORY=build/demo/repository
COPY ${REPOSITORY} /models

# Each Python model names what it imports in its version folder; the image brings Python, numpy and the backend.
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN cat /models/*/*/requirements.txt | sort -u > /tmp/requirements.txt \
    && pip install --no-cache-dir -r /tmp/requirements.txt \
    && rm /tmp/requirements.txt

# triton-server, the user that the image brings
USER 1000
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --start-period=60s CMD ["curl", "-fsS", "http://127.0.0.1:8000/v2/health/ready"]
CMD ["tritonserver", "--model-repository=/models"]
