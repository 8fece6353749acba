//! Generates the stubs from `protos`, without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let services = ["embedding", "model", "rerank", "tokenizer"];
    let files = services.map(|name| format!("embedgrpc/v1/{name}_service.proto"));
    println!("cargo:rerun-if-changed=../../protos");
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(protox::compile(files, ["../../protos"])?)?;
    Ok(())
}
