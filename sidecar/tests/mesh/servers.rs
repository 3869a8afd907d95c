//! Real servers and their own clients on ports that declare nothing: MariaDB and an SMTP server speak first, PostgreSQL
//! negotiates TLS in a way of its own.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::capture::Installed;
use crate::cluster::{Cluster, PATIENCE, UNDECLARED, UNDECLARED_THREE, UNDECLARED_TOO};
use crate::namespace::{self, run, said};

/// A server of this test; killed with it.
struct Server {
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn start(port: u16, program: &str, arguments: &[&str]) -> Server {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = Server { child: command.spawn().unwrap(), port };
    let deadline = Instant::now() + PATIENCE;
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "never listening: {program} {arguments:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    server
}

/// A folder that belongs to a user.
fn folder(user: &str) -> (TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display().to_string();
    run("chown", &[user, &path]);
    (directory, path)
}

fn mariadb() -> (Server, TempDir) {
    let (directory, data) = folder("mysql");
    let (port, datadir) = (free(), format!("--datadir={data}/data"));
    run("mariadb-install-db", &["--no-defaults", "--user=mysql", &datadir, "--auth-root-authentication-method=normal"]);
    let (socket, number) = (format!("--socket={data}/socket"), format!("--port={port}"));
    let arguments = [
        "--no-defaults",
        "--user=mysql",
        &datadir,
        &socket,
        &number,
        "--bind-address=127.0.0.1",
        "--skip-name-resolve",
    ];
    (start(port, "mariadbd", &arguments), directory)
}

fn postgres() -> (Server, TempDir) {
    let (directory, data) = folder("postgres");
    let bin = std::fs::read_dir("/usr/lib/postgresql").unwrap().next().unwrap().unwrap().path().join("bin");
    let as_postgres = |program: &Path, arguments: &[&str]| {
        let program = program.display().to_string();
        let all =
            [&["--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--", &program], arguments].concat();
        all.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let cluster = format!("{data}/data");
    let initdb = as_postgres(&bin.join("initdb"), &["-D", &cluster, "-A", "trust", "-U", "postgres", "--no-sync"]);
    run("setpriv", &initdb.iter().map(String::as_str).collect::<Vec<_>>());
    let (key, certificate) = (format!("{data}/server.key"), format!("{data}/server.crt"));
    let subject = ["-subj", "/CN=server", "-days", "2", "-nodes", "-keyout", &key, "-out", &certificate];
    run("openssl", &[&["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"][..], &subject].concat());
    run("chown", &["postgres", &key, &certificate]);
    let port = free();
    let arguments = as_postgres(
        &bin.join("postgres"),
        &[
            "-D",
            &cluster,
            "-k",
            &data,
            "-p",
            &port.to_string(),
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "ssl=on",
            "-c",
            &format!("ssl_key_file={key}"),
            "-c",
            &format!("ssl_cert_file={certificate}"),
        ],
    );
    (start(port, "setpriv", &arguments.iter().map(String::as_str).collect::<Vec<_>>()), directory)
}

/// The standard library's own server would need Python 3.11; this one says what a client waits for.
const SMTP: &str = "
import socketserver, sys
class Session(socketserver.StreamRequestHandler):
    def handle(self):
        say = lambda line: self.wfile.write((line + '\\r\\n').encode())
        say('220 ready')
        for line in self.rfile:
            word = line.split()[0].upper()
            if word == b'DATA':
                say('354 go on')
                while self.rfile.readline().strip() != b'.': pass
                say('250 taken')
            elif word == b'QUIT':
                say('221 bye'); return
            else:
                say('250 yes')
socketserver.ThreadingTCPServer(('127.0.0.1', int(sys.argv[1])), Session).serve_forever()
";

fn smtp() -> Server {
    let port = free();
    start(port, "python3", &["-c", SMTP, &port.to_string()])
}

/// Runs a client that must succeed, and returns what it wrote.
async fn client(program: &str, arguments: &[&str]) -> String {
    let output = tokio::process::Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = tokio::time::timeout(PATIENCE, output).await.unwrap().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn real_databases_and_mail_servers_work_on_undeclared_ports() {
    namespace::inside("servers::real_databases_and_mail_servers_work_on_undeclared_ports", || async {
        let ((mysql, _mysql_files), (psql, _psql_files), smtp) = (mariadb(), postgres(), smtp());
        let east = Cluster::start("east").await;
        let ports = [UNDECLARED, UNDECLARED_TOO, UNDECLARED_THREE];
        let bindings = [(ports[0], mysql.port), (ports[1], psql.port), (ports[2], smtp.port)];
        let pod = east.pod("cart-1", "cart", &bindings).await;
        east.imports(&ports, vec![east.local(vec![east.endpoint(&pod)], &ports)]);
        let installed = Installed::start(&east).await;
        installed.done(&["capture", "install"]).await;
        let asked = ["--no-defaults", "-h", "241.0.0.7", "-P", "9000", "-u", "root", "-N", "-e", "select 6*7"];
        assert_eq!(client("mariadb", &asked).await, "42\n");
        let tls = "host=241.0.0.7 port=9001 user=postgres sslmode=require";
        let over_tls = "select 6*7, ssl from pg_stat_ssl where pid = pg_backend_pid()";
        assert_eq!(client("psql", &[tls, "-At", "-c", over_tls]).await, "42|t\n");
        let plain = "host=241.0.0.7 port=9001 user=postgres sslmode=disable";
        assert_eq!(client("psql", &[plain, "-At", "-c", "select 6*7"]).await, "42\n");
        let mail = "import smtplib; server = smtplib.SMTP('241.0.0.7', 9002); \
                    server.sendmail('a@example', 'b@example', 'hello'); print(server.quit()[0])";
        assert_eq!(client("python3", &["-c", mail]).await, "221\n");
    });
}
