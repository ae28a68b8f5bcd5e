//! `pgcapture cert init|issue`: the cluster's own certificate authority, and what it signs.
//!
//! Asks no node and needs none: files in a folder, made by whoever keeps `ca.key`. What stands in the
//! files is `authority`'s business; how they are written that of `files`.

mod authority;
mod files;

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Subcommand};
use pgcapture_engine::{cluster::check_name, codes::node};
use serde::Serialize;

use self::{
    authority::{Authority, Issued, Role},
    files::Pair,
};
use super::{
    Failure, Global,
    output::{self, Column, Format, View},
};

/// The name under which the authority's own files lie.
const AUTHORITY: &str = "ca";

/// Ten years: a new authority means new certificates everywhere.
const AUTHORITY_DAYS: u16 = 3_650;

/// What browsers take at most; a certificate that nobody renews ends within a time that people remember.
const CERTIFICATE_DAYS: u16 = 825;

/// How a node's own command line reaches it.
const LOOPBACK: [&str; 2] = ["localhost", "127.0.0.1"];

/// Commands about certificates.
#[derive(Debug, Subcommand)]
pub enum CertCommand {
    /// Make an authority: ca.crt for everybody, ca.key for whoever issues certificates.
    Init(InitArgs),
    /// Make certificate and key of a node, or with --client of a consumer or an operator.
    Issue(IssueArgs),
}

/// Where files lie, and whether they may be replaced.
#[derive(Args, Debug)]
pub(super) struct FolderArgs {
    /// Folder of the authority and of what it makes.
    #[arg(long, value_name = "DIR", default_value = "certs")]
    dir: PathBuf,
    /// Replace files that are there.
    #[arg(long)]
    force: bool,
}

/// Arguments of `cert init`.
#[derive(Args, Debug)]
pub struct InitArgs {
    #[command(flatten)]
    folder: FolderArgs,
    /// How long the authority is good for, in days.
    #[arg(long, default_value_t = AUTHORITY_DAYS, value_parser = clap::value_parser!(u16).range(1..=36_500))]
    days: u16,
}

/// Arguments of `cert issue`.
#[derive(Args, Debug)]
pub struct IssueArgs {
    /// Name of the node or client; also of the files.
    name: String,
    /// Host name by which others reach the node; may be given several times. localhost and 127.0.0.1 are
    /// always in it.
    #[arg(long, value_name = "HOST")]
    host: Vec<String>,
    /// Address by which others reach the node; may be given several times.
    #[arg(long, value_name = "IP")]
    ip: Vec<IpAddr>,
    /// For a consumer or an operator: it opens connections and takes none.
    #[arg(long, conflicts_with_all = ["host", "ip"])]
    client: bool,
    #[command(flatten)]
    folder: FolderArgs,
    /// How long the certificate is good for, in days.
    #[arg(long, default_value_t = CERTIFICATE_DAYS, value_parser = clap::value_parser!(u16).range(1..=36_500))]
    days: u16,
}

/// What was made.
#[derive(Serialize)]
struct MadeView {
    name: String,
    cert: PathBuf,
    key: PathBuf,
    ca: PathBuf,
    hosts: Vec<String>,
    expires: String,
}

impl View for MadeView {
    const COLUMNS: &'static [Column] = &[
        ("NAME", false),
        ("CERT", false),
        ("KEY", false),
        ("CA", false),
        ("HOSTS", false),
        ("EXPIRES", false),
    ];
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.cert.display().to_string(),
            self.key.display().to_string(),
            self.ca.display().to_string(),
            output::joined(&self.hosts),
            self.expires.clone(),
        ]
    }
}

pub(super) fn run(global: &Global, command: CertCommand) -> Result<(), Failure> {
    match command {
        CertCommand::Init(args) => init(global, &args),
        CertCommand::Issue(args) => issue(global, &args),
    }
}

fn init(global: &Global, args: &InitArgs) -> Result<(), Failure> {
    let pair = Pair::at(&args.folder.dir, AUTHORITY)?;
    pair.refuse_existing(args.folder.force)?;
    let made = Authority::make(args.days)?;
    pair.write(&made, args.folder.force)?;
    let view = view_of(AUTHORITY, &pair, pair.cert.clone(), made);
    output::one(global, &view)?;
    if !global.quiet {
        output::talk(&format!(
            "keep {} where certificates are issued, and on no node\n  \
             next: pgcapture cert issue NODE --host HOST --dir {}\n",
            pair.key.display(),
            args.folder.dir.display(),
        ));
    }
    Ok(())
}

fn issue(global: &Global, args: &IssueArgs) -> Result<(), Failure> {
    check_name("certificate", &args.name).map_err(|error| Failure::usage(error.to_string()))?;
    if args.name == AUTHORITY {
        let text = format!("\"{AUTHORITY}\" is the name of the authority's own files");
        return Err(Failure::usage(text));
    }
    let role = role_of(args)?;
    let folder = &args.folder;
    let pair = Pair::at(&folder.dir, &args.name)?;
    pair.refuse_existing(folder.force)?;
    let ca = Pair::at(&folder.dir, AUTHORITY)?;
    let (cert, key) = ca.read().map_err(|failure| {
        let dir = folder.dir.display();
        failure.next(format!("pgcapture cert init --dir {dir}"))
    })?;
    let issued = Authority::load(&cert, &key)?.issue(&args.name, &role, args.days)?;
    pair.write(&issued, folder.force)?;
    let view = view_of(&args.name, &pair, ca.cert, issued);
    show(global, &view, &role)
}

fn role_of(args: &IssueArgs) -> Result<Role, Failure> {
    if args.client {
        return Ok(Role::Client);
    }
    if args.host.is_empty() && args.ip.is_empty() {
        return Err(Failure::usage(format!(
            "no --host and no --ip: nobody could reach node {} by this certificate",
            args.name
        ))
        .next("name them as in [node] advertise; for a consumer or an operator use --client"));
    }
    let ips = args.ip.iter().map(IpAddr::to_string);
    let mut hosts: Vec<String> = args.host.iter().cloned().chain(ips).collect();
    for host in LOOPBACK {
        if !hosts.iter().any(|known| known == host) {
            hosts.push(host.to_owned());
        }
    }
    Ok(Role::Node { hosts })
}

fn view_of(name: &str, pair: &Pair, ca: PathBuf, issued: Issued) -> MadeView {
    MadeView {
        name: name.to_owned(),
        cert: pair.cert.clone(),
        key: pair.key.clone(),
        ca,
        hosts: issued.hosts,
        expires: issued.expires,
    }
}

/// For people: what to paste, and what is next. Otherwise the value.
fn show(global: &Global, view: &MadeView, role: &Role) -> Result<(), Failure> {
    if !matches!(global.output, Format::Table | Format::Wide) {
        return Ok(output::one(global, view)?);
    }
    let (cert, key, ca) = (view.cert.display(), view.key.display(), view.ca.display());
    let (block, next) = match role {
        Role::Node { .. } => (
            format!("[tls]\ncert = \"{cert}\"\nkey = \"{key}\"\nclient_ca = \"{ca}\"\n"),
            format!(
                "bring the three files to node {0}, put this block into its configuration, and start \
                 it again; every node of a cluster needs one\n  \
                 then: pgcapture cert issue OPERATOR --client, and --ca, --cert and --key for commands",
                view.name
            ),
        ),
        Role::Client => (
            format!(
                "export PGCAPTURE_CA={ca}\nexport PGCAPTURE_CERT={cert}\nexport PGCAPTURE_KEY={key}\n"
            ),
            "set these for commands, or give the files to the consumer's TLS settings".to_owned(),
        ),
    };
    output::data(&block)?;
    if !global.quiet {
        output::talk(&format!("good until {}\n  next: {next}\n", view.expires));
    }
    Ok(())
}

/// What is there already is not replaced.
fn taken(text: String) -> Failure {
    Failure::new(7, &node::CONFLICT, text).next(
        "use another --dir or name, or replace it with --force: what it made is worthless then",
    )
}
