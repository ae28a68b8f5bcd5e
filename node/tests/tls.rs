//! Certificates as `pgcapture cert` makes them: three nodes that show them to each other and ask them of
//! every client. Who has none, or one of another authority, is refused and told why.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests: a panic is a failure"
)]

#[path = "end_to_end/process.rs"]
#[expect(dead_code, reason = "shared with the tests of one node")]
mod process;

#[path = "failover/addresses.rs"]
mod addresses;

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use addresses::free_addresses;
use pgcapture::Client;
use pgcapture_actors::postgres::{Connection, LocalServer, LocalServerOptions, Replication};
use pgcapture_proto::peer::v1::{IdentifyRequest, raft_client::RaftClient};
use process::{Ended, Node, Place, run};
use tempfile::TempDir;
use tonic::{
    Code,
    transport::{Certificate, ClientTlsConfig, Endpoint, Identity},
};

/// A folder of certificates.
struct Certs {
    folder: TempDir,
}

impl Certs {
    /// Makes an authority.
    async fn init() -> Self {
        let certs = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let said = certs.ask(&["init"]).await.expect(0);
        assert!(said.talk.contains("next: pgcapture cert issue"), "{said:?}");
        certs
    }

    async fn ask(&self, args: &[&str]) -> Ended {
        let dir = self.folder.path().to_str().unwrap();
        run("", &[&["cert"], args, &["--dir", dir]].concat()).await
    }

    /// Makes the certificate of a node and returns what to paste into its configuration.
    async fn node(&self, name: &str) -> String {
        let issued = self.ask(&["issue", name, "--host", "localhost"]).await;
        issued.expect(0).data
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// The flags of a command that shows a certificate of this authority and trusts `ca`.
    fn flags(&self, name: &str, ca: &Self) -> Vec<String> {
        let (cert, key) = (format!("{name}.crt"), format!("{name}.key"));
        let flags = [
            ("--ca", ca.file("ca.crt")),
            ("--cert", self.file(&cert)),
            ("--key", self.file(&key)),
        ];
        flags
            .into_iter()
            .flat_map(|(flag, file)| [flag.to_owned(), file])
            .collect()
    }
}

async fn ask(node: &str, flags: &[String], args: &[&str]) -> Ended {
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    run(node, &[args, &flags].concat()).await
}

/// Opens a stream with the crate, showing the operator's certificate of one authority and trusting another.
async fn subscribe(node: &str, shows: &Certs, trusts: &Certs) -> Result<(), pgcapture::Error> {
    let client = Client::builder(format!("https://{node}"))
        .ca_file(trusts.file("ca.crt"))
        .identity_files(shows.file("operator.crt"), shows.file("operator.key"));
    let consumer = client.connect().await?.consumer("rust");
    consumer.stream("shop").subscribe_raw().await.map(drop)
}

/// Asks a node what only nodes may ask, with a certificate of this name.
async fn identify(node: &str, certs: &Certs, name: &str) -> Result<(), tonic::Status> {
    let read = |file: String| fs::read(certs.file(&file)).unwrap();
    let identity = Identity::from_pem(read(format!("{name}.crt")), read(format!("{name}.key")));
    let ca = Certificate::from_pem(read("ca.crt".to_owned()));
    let tls = ClientTlsConfig::new().identity(identity).ca_certificate(ca);
    let endpoint = Endpoint::from_shared(format!("https://{node}")).unwrap();
    let channel = endpoint.tls_config(tls).unwrap().connect().await.unwrap();
    let request = IdentifyRequest::default();
    let asked = RaftClient::new(channel).identify(request).await;
    asked.map(drop)
}

fn configure(folder: &TempDir, name: &str, listen: &str, peers: &[String], tls: &str) -> String {
    let more = format!("peers = {peers:?}\n{tls}");
    Place::at(folder.path()).configure_as(name, listen, &more)
}

fn mode(file: &str) -> u32 {
    fs::metadata(Path::new(file)).unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_made_as_they_must_be_and_never_replaced_by_accident() {
    let certs = Certs::init().await;
    let key = certs.file("ca.key");
    assert_eq!(mode(&key), 0o600);
    let before = fs::read(&key).unwrap();
    let again = certs.ask(&["init"]).await.expect(7);
    again.says(&["ca.key is there already", "--force"]);
    assert_eq!(fs::read(&key).unwrap(), before);

    let block = certs.node("n1").await;
    assert!(block.starts_with("[tls]\ncert = \"/"), "{block}");
    assert_eq!(mode(&certs.file("n1.key")), 0o600);
    let again = certs.ask(&["issue", "n1", "--ip", "10.0.0.1"]).await;
    again.expect(7).says(&["n1.key is there already"]);
    let forced = ["issue", "n1", "--ip", "10.0.0.1", "--force", "-o", "json"];
    let made = certs.ask(&forced).await.json();
    assert_eq!(
        made["hosts"],
        serde_json::json!(["10.0.0.1", "localhost", "127.0.0.1"])
    );

    certs
        .ask(&["issue", "n2"])
        .await
        .expect(2)
        .says(&["--client"]);
    certs.ask(&["issue", "../n2", "--client"]).await.expect(2);
    certs.ask(&["issue", "ca", "--client"]).await.expect(2);
    certs
        .ask(&["issue", "n2", "--host", "no host"])
        .await
        .expect(2);
    let nowhere = tempfile::tempdir().unwrap();
    let empty = Certs { folder: nowhere };
    let refused = empty.ask(&["issue", "n1", "--client"]).await.expect(1);
    refused.says(&["PGC-C008", "next: pgcapture cert init"]);
    assert!(!Path::new(&empty.file("n1.key")).exists());
}

/// Starts three nodes that find each other by their certificates.
async fn start_three(certs: &Certs, folders: &[TempDir], addresses: &[String]) -> Vec<Node> {
    let peers = &addresses[..3];
    let mut files = Vec::new();
    for index in 0..3 {
        let name = format!("n{}", index + 1);
        let (folder, listen) = (&folders[index], &addresses[index]);
        let tls = certs.node(&name).await;
        files.push(configure(folder, &name, listen, peers, &tls));
    }
    futures_util::future::join_all(files.iter().map(|file| Node::start(file))).await
}

/// A row arrives through every node.
async fn captures(nodes: &[Node], flags: &[String], server: &LocalServer) {
    let node = &nodes[1].listen;
    let healthy = ["cluster", "health", "--until", "healthy"];
    ask(node, flags, &healthy).await.expect(0);
    let config = server.config("postgres");
    let connection = Connection::connect(&config, Replication::Off).await;
    let mut connection = connection.unwrap();
    let create = "CREATE TABLE t (id bigint PRIMARY KEY)";
    connection.query(create).await.unwrap();
    let url = server.url("postgres");
    let add = ["source", "add", "shop", "--url", &url];
    ask(node, flags, &add).await.expect(0);
    ask(node, flags, &healthy).await.expect(0);
    connection.query("INSERT INTO t VALUES (7)").await.unwrap();
    for node in nodes {
        let tail = ["tail", "shop", "--from", "earliest", "-n", "1"];
        let seen = ask(&node.listen, flags, &tail).await.expect(0);
        assert!(seen.data.contains("INSERT public.t id=7"), "{seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_and_clients_know_each_other_by_their_authority() {
    let (certs, others) = (Certs::init().await, Certs::init().await);
    let addresses = free_addresses(4);
    let folders: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let server = LocalServer::start(LocalServerOptions::default());
    let starts = start_three(&certs, &folders, &addresses);
    let (server, nodes) = tokio::join!(server, starts);
    let server = server.expect("PostgreSQL is installed");
    for authority in [&certs, &others] {
        let operator = ["issue", "operator", "--client"];
        authority.ask(&operator).await.expect(0);
    }
    let flags = certs.flags("operator", &certs);
    captures(&nodes, &flags, &server).await;

    // A client of another authority, one that shows nothing, and one that trusts another authority.
    let node = &nodes[1].listen;
    let foreign = others.flags("operator", &certs);
    let nothing = foreign[..2].to_vec();
    for flags in [foreign, nothing, certs.flags("operator", &others)] {
        let refused = ask(node, &flags, &["cluster", "status"]).await.expect(5);
        refused.says(&["PGC-C009", "pgcapture cert issue"]);
    }

    // Consumers in Rust are told the same.
    for (shows, trusts, said) in [
        (&others, &certs, "this client's certificate"),
        (&certs, &others, "certificate of the node"),
    ] {
        let error = subscribe(node, shows, trusts)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(said) && error.contains("identity_files"),
            "{error}"
        );
    }

    // What nodes ask of each other is not for clients.
    for (name, code) in [("operator", Some(Code::Unauthenticated)), ("n1", None)] {
        let asked = identify(node, &certs, name).await;
        assert_eq!(asked.err().map(|status| status.code()), code, "{name}");
    }

    // A node of another authority is not let in, and says why.
    let tls = others.node("n4").await;
    let file = configure(&folders[3], "n4", &addresses[3], &addresses, &tls);
    let stranger = Node::launch(&file, &[]);
    stranger.logged(|line| line["code"] == "PGC-C009").await;
    let members = ask(node, &flags, &["cluster", "members"]).await.expect(0);
    assert!(!members.data.contains("n4"), "{members:?}");
    stranger.kill().await;
}
