//! The protocol over a real socket.

use std::{os::unix::fs::PermissionsExt as _, sync::Arc};

use async_trait::async_trait;

use super::{server::Obey, *};

const LIMIT: Duration = Duration::from_secs(30);

/// Refuses node 9, says what it was asked otherwise.
#[derive(Debug)]
struct Parrot;

#[async_trait]
impl Obey for Parrot {
    async fn obey(&self, request: Request) -> Result<Answer, Failure> {
        if request == Request::Kill(9) {
            return Err(Failure::new(4, &codes::node::DEV_NODE, "no node 9"));
        }
        Ok(Answer::Done {
            said: format!("{request:?}"),
            nodes: Vec::new(),
        })
    }
}

async fn served() -> (tempfile::TempDir, PathBuf, Server) {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(folder.path(), 7_700);
    let server = Server::start_at(path.clone(), Arc::new(Parrot));
    let server = server.await.unwrap();
    (folder, path, server)
}

#[tokio::test]
async fn every_request_arrives_as_it_was_sent() {
    let (_folder, path, _server) = served().await;
    let groups = vec![BTreeSet::from([1]), BTreeSet::from([2, 3])];
    for request in [
        Request::Status,
        Request::Kill(2),
        Request::Stop(2),
        Request::Pause(2),
        Request::Resume(2),
        Request::Start(2),
        Request::Add,
        Request::Partition(groups),
        Request::Heal,
    ] {
        let answer = ask(&path, &request, LIMIT).await.unwrap();
        let (said, nodes) = answer.into_result().unwrap();
        assert_eq!((said, nodes), (format!("{request:?}"), Vec::new()));
    }
}

#[tokio::test]
async fn a_refusal_keeps_its_code_and_its_next_step() {
    let (_folder, path, _server) = served().await;
    let answer = ask(&path, &Request::Kill(9), LIMIT).await.unwrap();
    let failure = answer.into_result().unwrap_err();
    assert_eq!((failure.exit, failure.code.as_str()), (4, "PGC-N17"));
    assert_eq!(failure.next, codes::node::DEV_NODE.next);
}

#[tokio::test]
async fn only_its_user_may_open_the_socket_and_it_goes_with_the_server() {
    let (_folder, path, server) = served().await;
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(server);
    assert!(!path.exists());
    let failure = ask(&path, &Request::Status, LIMIT).await.unwrap_err();
    assert_eq!((failure.exit, failure.code.as_str()), (6, "PGC-N16"));
    assert!(!failure.next.is_empty());
}

#[tokio::test]
async fn a_second_server_is_refused_and_a_dead_one_replaced() {
    let (_folder, path, server) = served().await;
    let again = || Server::start_at(path.clone(), Arc::new(Parrot));
    let failure = again().await.unwrap_err();
    assert_eq!(failure.code, "PGC-N06");
    drop(server);
    // What a killed dev leaves: a file that nobody listens behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    // A program that another test starts may hold the listener until it runs.
    let replaced = async {
        loop {
            if let Ok(server) = again().await {
                return server;
            }
            tokio::task::yield_now().await;
        }
    };
    let _server = tokio::time::timeout(LIMIT, replaced).await.unwrap();
    assert!(ask(&path, &Request::Status, LIMIT).await.is_ok());
}

#[tokio::test]
async fn the_socket_is_made_beside_its_place_and_nothing_else_is_left_there() {
    let (folder, path, _server) = served().await;
    let entries = || {
        let entries = std::fs::read_dir(folder.path()).unwrap().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    assert_eq!(entries(), [path]);
    // A place that is taken by something else.
    let taken = path_in(folder.path(), 7_701);
    std::fs::create_dir(&taken).unwrap();
    let failure = Server::start_at(taken.clone(), Arc::new(Parrot)).await;
    assert_eq!(failure.unwrap_err().code, "PGC-N06");
    std::fs::remove_dir(taken).unwrap();
    assert_eq!(entries().len(), 1);
}

#[tokio::test]
async fn a_path_may_be_as_long_as_a_socket_allows() {
    let folder = tempfile::tempdir().unwrap();
    let name = path_in(Path::new(""), 7_700);
    let room = 107 - folder.path().as_os_str().len() - name.as_os_str().len() - 2;
    let deep = folder.path().join("x".repeat(room));
    std::fs::create_dir(&deep).unwrap();
    let path = path_in(&deep, 7_700);
    assert_eq!(path.as_os_str().len(), 107);
    let _server = Server::start_at(path.clone(), Arc::new(Parrot)).await;
    let answer = ask(&path, &Request::Status, LIMIT).await.unwrap();
    answer.into_result().unwrap();
}

#[tokio::test]
async fn a_request_of_another_version_is_answered() {
    let (_folder, path, _server) = served().await;
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"\"explode\"\n").await.unwrap();
    let answer = read_line(&mut stream).await.unwrap().unwrap();
    let answer: Answer = serde_json::from_str(&answer).unwrap();
    let failure = answer.into_result().unwrap_err();
    assert_eq!(failure.exit, 2);
    assert!(failure.text.contains("explode"), "{failure:?}");
}
