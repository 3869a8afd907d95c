//! `make demo`: three clusters on loopback, a service called across them, and what callers see when things die.

use std::path::PathBuf;
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
    let temporary = tempfile::Builder::new().prefix("isthmus-demo-").tempdir()?;
    let directory = arguments.directory.unwrap_or_else(|| temporary.path().to_owned());
    let mut screen = Screen::new();
    let story = tokio::select! {
        story = story::tell(&mut screen, &directory) => story,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    match story {
        Ok(lab) => {
            if arguments.stay {
                stay(&mut screen, &lab).await?;
            }
            lab.stop().await;
            screen.good("everything is as expected");
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            screen.bad(&format!("{error:#}"));
            let kept = temporary.keep();
            screen.fact(&format!("logs are kept below {}", kept.display()));
            Ok(ExitCode::FAILURE)
        }
    }
}

async fn stay(screen: &mut Screen, lab: &Lab) -> anyhow::Result<()> {
    screen.chapter("the lab stays up; try, in another terminal:");
    if let Some(east) = lab.clusters.first() {
        let (proxy, dns) = (east.client_proxy(), east.dns());
        let host = format!("frontend.{NAMESPACE}.svc.clusterset.local");
        let isthmus = format!("{} --admin {}", east.isthmus().display(), east.admin_socket().display());
        screen.command(&format!("curl -i -H 'isthmus-trace: 1' --proxy http://{proxy} http://{host}/"));
        screen.command(&format!("dig @{} -p {} {host}", dns.ip(), dns.port()));
        screen.command(&format!("{isthmus} status"));
        screen.command(&format!("{isthmus} get imports"));
        screen.command(&format!("{isthmus} get clusters -o json"));
        screen.fact(&format!("federation {DOMAIN}; files and logs below {}", east.directory().display()));
    }
    screen.fact("Ctrl-C ends it");
    Ok(tokio::signal::ctrl_c().await?)
}
