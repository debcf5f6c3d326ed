# The image of the agent and the command: docker build --tag ghcr.io/redis-allocator/redis-allocator:0.1.0 .
# That of the example worker:              docker build --target examples --tag worker:0.1.0 .
# The program needs the C library and nothing else; the runtime image has that, certificates, and no shell.

FROM docker.io/library/rust:1.95-bookworm AS source
WORKDIR /source
COPY Cargo.toml Cargo.lock ./
COPY crates ./crates
# Members of the workspace, without which cargo does not begin.
COPY examples ./examples
COPY tests ./tests
# A small program: what a debugger would want is left out.
ENV CARGO_PROFILE_RELEASE_DEBUG=none CARGO_PROFILE_RELEASE_STRIP=symbols

FROM source AS build
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/source/target \
    cargo build --locked --release --package redis-allocator-agent --bin redis-allocator && \
    install -D target/release/redis-allocator /out/redis-allocator

FROM source AS build-examples
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/source/target \
    cargo build --locked --release --package examples --bin worker && \
    install -D target/release/worker /out/worker

FROM gcr.io/distroless/cc-debian12:nonroot AS examples
COPY --from=build-examples /out/worker /usr/local/bin/worker
USER 65532:65532
ENTRYPOINT ["worker"]

FROM gcr.io/distroless/cc-debian12:nonroot AS agent
LABEL org.opencontainers.image.title="redis-allocator" \
      org.opencontainers.image.source="https://github.com/redis-allocator/redis-allocator" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /out/redis-allocator /usr/local/bin/redis-allocator
USER 65532:65532
EXPOSE 9464
ENTRYPOINT ["redis-allocator"]
