# The web page in a container: docker build -t dermlens . && docker run -p 7860:7860 dermlens
# Research and education only, not a medical device. The weights inside are for non-commercial use (CC BY-NC 4.0).
FROM python:3.12-slim AS build
WORKDIR /build
COPY pyproject.toml README.md LICENSE MANIFEST.in ./
COPY src ./src
# The int8 copy is made here, once, so that the page starts fast.
RUN python -m venv /opt/dermlens \
    && /opt/dermlens/bin/pip install --no-cache-dir ".[app,export]" \
    && XDG_CACHE_HOME=/opt/dermlens/cache /opt/dermlens/bin/python -c \
        "import dermlens as dl; from dermlens.model.int8_copy import int8_copy; int8_copy(dl.load())"

FROM python:3.12-slim
RUN useradd --create-home --uid 1000 dermlens
COPY --from=build --chown=dermlens /opt/dermlens /opt/dermlens
USER 1000
WORKDIR /home/dermlens
# Nothing is loaded from elsewhere at run time.
ENV PATH=/opt/dermlens/bin:$PATH \
    XDG_CACHE_HOME=/opt/dermlens/cache \
    GRADIO_ANALYTICS_ENABLED=False \
    HF_HUB_OFFLINE=1 \
    PYTHONUNBUFFERED=1
EXPOSE 7860
HEALTHCHECK --start-period=90s --interval=30s --timeout=10s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:7860/', timeout=8)"]
CMD ["dermlens", "app", "--host", "0.0.0.0", "--port", "7860"]
