//! `isthmus join`: the token goes to the control-plane, which makes its own keys; no key ever travels.

use std::fs;
use std::io::{self, IsTerminal as _, Read as _};

use federation_api::token::{JoinToken, MAX_TOKEN_BYTES};
use serde::Serialize;

use crate::admin::Admin;
use crate::admin::wire::Status;
use crate::arguments::Join;
use crate::failure::Failure;
use crate::output::Output;
use crate::wait::{Progress, until};

/// `isthmus join -o json`
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Joined {
    cluster: String,
    federation: String,
    generation: u64,
    /// False with `--no-wait`.
    joined: bool,
}

/// Hands the token over, and waits until the membership is the token's.
pub(crate) async fn join(arguments: &Join, admin: &Admin, output: &Output) -> Result<(), Failure> {
    let token: JoinToken = read(arguments)?.parse()?;
    admin.join(&token.to_string()).await?;
    if !arguments.patience.no_wait {
        let what = format!("join {}", token.federation());
        until(&what, arguments.patience.timeout, || async { Ok(progress(&admin.status().await?, token.generation())) })
            .await?;
    }
    let joined = Joined {
        cluster: token.cluster().to_string(),
        federation: token.federation().to_string(),
        generation: token.generation(),
        joined: !arguments.patience.no_wait,
    };
    output.show(&joined, |_| {
        let verb = if joined.joined { "joined" } else { "is joining" };
        format!("cluster {} {verb} federation {}\n", joined.cluster, joined.federation)
    })
}

/// A membership of an older token is not the one that is waited for.
fn progress(status: &Status, generation: u64) -> Progress<()> {
    match status.generation {
        Some(found) if found >= generation => Progress::Done(()),
        Some(found) => Progress::Waiting(format!("it still has the membership of generation {found}")),
        None => Progress::Waiting("it has no membership yet".to_owned()),
    }
}

fn read(arguments: &Join) -> Result<String, Failure> {
    let broken = |source| Failure::Stream { what: "standard input", source };
    match (&arguments.token, &arguments.token_file) {
        (_, Some(path)) => {
            fs::read_to_string(path).map_err(|error| Failure::File { path: path.clone(), reason: error.to_string() })
        }
        (Some(token), None) if token != "-" => Ok(token.clone()),
        (None, None) if io::stdin().is_terminal() => {
            Err(Failure::Usage("give a token, --token-file FILE, or the token on standard input".to_owned()))
        }
        _ => {
            let mut text = String::new();
            // One byte more than a token has, so that a longer text is refused as one.
            let limit = u64::try_from(MAX_TOKEN_BYTES * 2).unwrap_or(u64::MAX);
            io::stdin().lock().take(limit).read_to_string(&mut text).map_err(broken)?;
            Ok(text)
        }
    }
}
