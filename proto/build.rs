//! Generates the Rust types from the `.proto` files with protox, so that no protoc is needed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

const FILES: [&str; 7] = [
    "pgcapture.proto",
    "admin.proto",
    "admin_cluster.proto",
    "raft.proto",
    "liveness.proto",
    "peer_log.proto",
    "peer_ranges.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    fs::write(out_dir.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .client_mod_attribute(".", "#[cfg(feature = \"client\")]")
        .server_mod_attribute(".", "#[cfg(feature = \"server\")]")
        .compile_fds(descriptors)?;
    for file in FILES {
        println!("cargo:rerun-if-changed=proto/{file}");
    }
    Ok(())
}
