//! The operator's command.
//!
//! ```text
//!   operator's directory ── token create (offline) ──► token
//!      │ mTLS gRPC, with the operator's certificate      │ join
//!      └──► trust-bundle: quarantine · release · evict · members · audit · token list, revoke · authority
//!   isthmus ── HTTP/JSON over a Unix socket ──► control-plane     join · leave · rotate · export · get · status
//!      ├────── DNS over UDP, then TCP ────────► its DNS           dig
//!      └────── HTTP/JSON over TCP ────────────► a sidecar         explain
//! ```
//!
//! - Results go to standard output, as a table or as JSON (`-o json`, stable: its types are in `admin/wire.rs` and
//!   beside each command); everything else goes to standard error.
//! - An error is one line that names what and where; the exit codes are in `isthmus --help`.
//! - No secret but the token passes through, and that one is never logged.

mod admin;
mod arguments;
mod audit;
mod authority;
mod dig;
mod explain;
mod export;
mod failure;
mod get;
mod join;
mod leave;
mod members;
mod operator;
mod output;
mod quarantine;
mod rotate;
mod status;
mod time;
mod token;
mod wait;

use std::process::ExitCode;

use clap::Parser as _;

use admin::Admin;
use arguments::{Arguments, Command, TokenCommand};
use failure::{EXIT_BAD_NEWS, Failure};
use output::Output;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_BAD_NEWS),
        Err(failure) => {
            output::note(&format!("isthmus: {failure}"));
            failure.exit_code()
        }
    }
}

/// Does what was asked; whether the answer is good news.
async fn run(arguments: Arguments) -> Result<bool, Failure> {
    let Arguments { global, command } = arguments;
    let output = Output::new(global.output, global.color);
    let admin = Admin::at(&global.admin);
    match command {
        Command::Token(TokenCommand::Create(create)) => token::create(&create, global.output, &output).await?,
        Command::Token(TokenCommand::List(list)) => token::list(&list, &output).await?,
        Command::Token(TokenCommand::Revoke(revoke)) => token::revoke(&revoke).await?,
        Command::Join(join) => join::join(&join, &admin, &output).await?,
        Command::Leave(patience) => leave::leave(&patience, &admin, &output).await?,
        Command::Rotate(rotate) => rotate::rotate(&rotate, &admin, &output).await?,
        Command::Export(export) => export::export(&export, &admin, &output).await?,
        Command::Unexport(export) => export::unexport(&export, &admin, &output).await?,
        Command::Get(get) => get::get(&get, &admin, &output).await?,
        Command::Status(asked) => return status::status(&asked, &admin, &output).await,
        Command::Dig(dig) => return dig::dig(&dig, &admin, &output).await,
        Command::Explain(explain) => explain::explain(&explain, &output).await?,
        Command::Quarantine(target) => quarantine::quarantine(&target, &output).await?,
        Command::Release(target) => quarantine::release(&target, &output).await?,
        Command::Evict(evict) => quarantine::evict(&evict, &output).await?,
        Command::Members(service) => return members::members(&service, &output).await,
        Command::Audit(audit) => return audit::audit(&audit, &output).await,
        Command::Authority(command) => authority::authority(&command, &output).await?,
    }
    Ok(true)
}
