//! Open, cut, healed, dead: over real sockets.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// Long enough for loopback to bring what it will bring; a silence is only seen by waiting for it.
const SILENCE: Duration = Duration::from_millis(100);

/// A node that sends back what it gets, on a real port.
async fn echo() -> (SocketAddr, Task<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = spawn(TaskKind::Tool, "echo", async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            open.push(spawn(TaskKind::Tool, "echo connection", async move {
                let (mut read, mut write) = stream.split();
                drop(tokio::io::copy(&mut read, &mut write).await);
            }));
        }
    });
    (address, task)
}

async fn linked() -> (Links, SocketAddr, Task<()>) {
    let (target, task) = echo().await;
    let mut links = Links::default();
    links.add((1, 2), target).unwrap();
    let address = links.links[&(1, 2)].address;
    (links, address, task)
}

async fn says(stream: &mut TcpStream, text: &str) -> bool {
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut heard = vec![0; text.len()];
    let read = tokio::time::timeout(SILENCE, stream.read_exact(&mut heard)).await;
    read.is_ok_and(|read| read.is_ok()) && heard == text.as_bytes()
}

#[tokio::test]
async fn bytes_flow_over_an_open_link_and_its_routes_name_it() {
    let (links, address, _echo) = linked().await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    assert!(says(&mut stream, "hello").await);
    let target = links.links[&(1, 2)].target;
    assert_eq!(links.routes(1), format!("{target} {address}\n"));
    assert_eq!(links.routes(2), "");
}

#[tokio::test]
async fn a_cut_link_is_silent_and_heals_by_closing_what_it_held() {
    let (links, address, _echo) = linked().await;
    let mut old = TcpStream::connect(address).await.unwrap();
    assert!(says(&mut old, "before").await);
    links.cut(|pair| pair == (1, 2));
    assert!(!says(&mut old, "lost").await, "nothing flows");
    let mut new = TcpStream::connect(address).await.expect("it is taken");
    assert!(!says(&mut new, "lost").await, "and hears nothing");

    links.cut(|_| false);
    for mut held in [old, new] {
        let mut rest = Vec::new();
        // An end or a reset: what it was sent was never read.
        let ended = held.read_to_end(&mut rest).await;
        assert!(ended.is_err() || rest.is_empty(), "{rest:?}");
    }
    let mut healed = TcpStream::connect(address).await.unwrap();
    assert!(says(&mut healed, "after").await);
}

#[tokio::test]
async fn a_link_to_a_dead_node_refuses_and_opens_again() {
    let (links, address, _echo) = linked().await;
    let refused = async || TcpStream::connect(address).await.is_err();
    links.close_to(2);
    while !refused().await {
        tokio::task::yield_now().await;
    }
    // Healing does not bring the dead back.
    links.cut(|_| false);
    assert!(refused().await);
    links.open_to(2, |_| false);
    while refused().await {
        tokio::task::yield_now().await;
    }
    let mut stream = TcpStream::connect(address).await.unwrap();
    assert!(says(&mut stream, "again").await);
}

#[tokio::test]
async fn a_node_that_nobody_listens_for_ends_the_connection() {
    let target = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let mut links = Links::default();
    links.add((1, 2), target).unwrap();
    let mut stream = TcpStream::connect(links.links[&(1, 2)].address)
        .await
        .unwrap();
    let mut rest = Vec::new();
    let ended = stream.read_to_end(&mut rest).await;
    assert!(ended.is_err() || rest.is_empty());
}
