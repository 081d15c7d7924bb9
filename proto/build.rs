//! Compiles the contract and derives the catalog from its options.

use std::{env, error::Error, fs, path::PathBuf};

#[path = "build/catalog.rs"]
mod catalog;
#[path = "src/elsewhere.rs"]
#[expect(unreachable_pub, reason = "the crate has it too, and shows it")]
mod elsewhere;
#[path = "build/openapi.rs"]
mod openapi;
#[path = "build/write.rs"]
mod write;

const FILES: [&str; 4] = [
    "stepwell/v1/task_service.proto",
    "stepwell/v1/step_service.proto",
    "stepwell/v1/event_service.proto",
    "stepwell/v1/subscription_service.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=stepwell");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=src/elsewhere.rs");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_imports(true).include_source_info(true);
    if let Err(error) = compiler.open_files(FILES) {
        println!("cargo::error=proto/{}", in_one_line(&error));
        return Ok(());
    }
    // The encoded set keeps custom options; the decoded one drops them.
    let bytes = compiler.encode_file_descriptor_set();
    let pool = prost_reflect::DescriptorPool::decode(bytes.as_slice())?;

    let catalog = match catalog::read(&pool) {
        Ok(catalog) => catalog,
        Err(faults) => {
            faults.iter().for_each(|fault| println!("cargo::error={fault}"));
            return Ok(());
        }
    };
    fs::write(out.join("contract.bin"), &bytes)?;
    fs::write(out.join("openapi.json"), openapi::documents(&pool).to_string())?;
    fs::write(out.join("catalog.rs"), write::rust(&catalog))?;
    fs::write(out.join("events.md"), write::markdown(&catalog))?;
    fs::write(out.join("edges.sql"), write::sql(&catalog))?;

    let mut config = tonic_prost_build::Config::new();
    // Events are encoded once, however many they are sent to.
    config.extern_path(".stepwell.v1.EventBatch", "crate::batch::EventBatch");
    // The codec treats requests by name.
    config.enable_type_names();
    // Definitions and requests are hashed as they are encoded, so the order of their maps must not change.
    config.btree_map([
        ".stepwell.v1.StepTemplate",
        ".stepwell.v1.Hello",
        ".stepwell.v1.Executor",
        ".stepwell.v1.Task",
        ".stepwell.v1.TaskAnnotated",
        ".stepwell.v1.CreateTaskRequest",
        ".stepwell.v1.AnnotateTaskRequest",
    ]);
    tonic_prost_build::configure()
        .generate_default_stubs(true)
        .codec_path("crate::codec::BoundedCodec")
        .compile_fds_with_config(compiler.file_descriptor_set(), config)?;
    Ok(())
}

/// The error with its file, line and column, and all its causes.
fn in_one_line(error: &dyn Error) -> String {
    let mut text = format!("{error:?}");
    let mut cause = error.source();
    while let Some(inner) = cause {
        text += &format!(": {inner}");
        cause = inner.source();
    }
    text.replace('\n', " ")
}
