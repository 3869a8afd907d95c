//! Every command of the README's `sh` blocks works as printed, in a running lab.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "scenarios/stage.rs"]
#[expect(dead_code, reason = "shared with the scenarios, which use the rest")]
mod stage;

use std::path::Path;
use std::process::Command;

use stage::Stage;

#[tokio::test(flavor = "multi_thread")]
async fn the_readmes_commands_work_as_printed() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let blocks: Vec<_> = readme.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 4, "the README has only {} blocks of commands", blocks.len());
    let mut stage = Stage::set().await;
    let east = stage.lab.cluster("east").unwrap();
    let programs = east.isthmus().parent().unwrap().to_owned();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    for block in blocks {
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", block])
            .env("PATH", &path)
            .env("PROXY", east.client_proxy().to_string())
            .env("DNS_ADDRESS", east.dns().ip().to_string())
            .env("DNS_PORT", east.dns().port().to_string())
            .env("ISTHMUS_ADMIN", east.admin_socket())
            .output()
            .unwrap();
        let (told, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{block}\n{told}{wrong}");
        assert!(!told.trim().is_empty(), "{block}\nprinted nothing");
        if block.starts_with("curl") {
            assert!(told.starts_with("HTTP/1.1 200") && told.contains("isthmus-path:"), "{told}");
        }
        if block.starts_with("dig") {
            assert!(told.contains("241."), "{told}");
        }
    }
    stage.end().await;
}
