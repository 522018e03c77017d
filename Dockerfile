# pgweir in a small image that runs without root.
#
#   docker build -t pgweir .
#   docker run --rm -p 6432:6432 -p 9930:9930 pgweir run --primary postgres://HOST:5432 \
#       --listen 0.0.0.0:6432 --http 0.0.0.0:9930 --set http.without_token=metrics
#
# This project's CI has no container engine: the image is not built there.

FROM rust:1-slim-bookworm AS build
# What the program is trained with; see benches/release.sh.
RUN apt-get update && apt-get install -y --no-install-recommends openssl postgresql python3 && rustup component add llvm-tools
WORKDIR /src
COPY . .
RUN benches/release.sh && strip target/profiled/release/pgweir

FROM debian:bookworm-slim
RUN useradd --system --uid 6432 --no-create-home --shell /usr/sbin/nologin pgweir
COPY --from=build /src/target/profiled/release/pgweir /usr/local/bin/pgweir
USER pgweir
EXPOSE 6432 9930

# Healthy is what /ready says. Bash speaks enough TCP for that; the image has no curl.
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s --retries=3 \
  CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9930 && printf 'GET /ready HTTP/1.0\\r\\n\\r\\n' >&3 && read -r _ status _ <&3 && [ \"$status\" = 200 ]"]

# SIGTERM lets transactions finish; give `docker stop` at least general.shutdown_timeout (`--time`).
STOPSIGNAL SIGTERM
ENTRYPOINT ["pgweir"]
CMD ["--help"]
