//! `make demo`: three clusters on loopback, a service called across them, and what callers see when things die.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use e2e::demo::screen::Screen;
use e2e::demo::story;
use e2e::lab::{DOMAIN, Lab, NAMESPACE};

#[derive(Parser)]
struct Arguments {
    /// Leave everything running and print what to try, until Ctrl-C.
    #[arg(long)]
    stay: bool,
    /// Where configuration, state and logs go; a new temporary folder without it.
    #[arg(long)]
    directory: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut temporary = tempfile::Builder::new().prefix("isthmus-demo-").tempdir()?;
    let directory = arguments.directory.unwrap_or_else(|| temporary.path().to_owned());
    let mut screen = Screen::new();
    let story = tokio::select! {
        story = story::tell(&mut screen, &directory) => story,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    match story {
        Ok(lab) => {
            if arguments.stay {
                stay(&mut screen, &lab, &directory).await?;
            }
            lab.stop().await;
            screen.good("everything is as expected");
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            screen.bad(&format!("{error:#}"));
            temporary.disable_cleanup(true);
            screen.fact(&format!("logs are kept below {}", directory.display()));
            Ok(ExitCode::FAILURE)
        }
    }
}

async fn stay(screen: &mut Screen, lab: &Lab, directory: &Path) -> anyhow::Result<()> {
    let directory = directory.display();
    screen.chapter("the lab stays up; try, in another terminal:");
    if let Some(east) = lab.clusters.first() {
        let (proxy, dns) = (east.client_proxy(), east.dns());
        let host = format!("frontend.{NAMESPACE}.svc.clusterset.local");
        let programs = east.isthmus().parent().unwrap_or(Path::new(".")).display().to_string();
        screen.command(&format!("export PATH={programs}:$PATH ISTHMUS_ADMIN={}", east.admin_socket().display()));
        screen.command(&format!("export PROXY={proxy} DNS_ADDRESS={} DNS_PORT={}", dns.ip(), dns.port()));
        screen.command(&format!("curl -i -H 'isthmus-trace: 1' --proxy http://$PROXY http://{host}/"));
        screen.command(&format!("dig @$DNS_ADDRESS -p $DNS_PORT {host}"));
        screen.command("isthmus status");
        screen.command("isthmus get imports");
        screen.command("isthmus get clusters -o json");
        screen.fact("(checkoutservice was unexported at the story's end: `isthmus export` in north brings it back)");
        screen.fact(&format!("federation {DOMAIN}; configuration, state and logs of everything below {directory}"));
    }
    screen.fact("Ctrl-C ends it");
    Ok(tokio::signal::ctrl_c().await?)
}
