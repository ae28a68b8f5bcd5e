//! One consumer of a dump, in a process of its own, and the dump that it gets.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use pgcapture_proto::admin::v1::{
    Dump, StartDumpRequest, WatchDumpRequest, dumps_client::DumpsClient,
};
use tonic::transport::Channel;

use super::{DumpArgs, world::dumped};
use crate::cli::bench::{
    child::{Child, Task},
    consumer::{self, Done, Opened, Wants},
    log::{BATCH_SIZE, Delivery},
    node_side::STREAM,
};

/// Longest that a dump may take to end once its rows are acknowledged: the last sweep reads the table.
const END_WITHIN: Duration = Duration::from_secs(120);

/// A consumer that is connected.
#[derive(Debug)]
pub(super) struct Taker {
    child: Child,
    dumps: DumpsClient<Channel>,
    request: StartDumpRequest,
    rows: u64,
    /// Of the dump, once it was started.
    id: String,
}

impl Taker {
    /// Connects a fresh consumer of this name to a node; its dump reads so many ranges at once, 0 for as
    /// many as when nothing is said.
    pub(super) async fn start(
        args: &DumpArgs,
        address: &str,
        name: &str,
        parallel: u32,
    ) -> anyhow::Result<Self> {
        let uri = format!("{STREAM}/{name}");
        let order = consumer::Order {
            address: address.to_owned(),
            uri: uri.clone(),
            changes: args.rows(),
            batch: match args.delivery {
                Delivery::Single => 0,
                Delivery::Batch => BATCH_SIZE,
            },
            client: args.client,
            latency_from: None,
            wants: Wants::Rows(dumped()),
        };
        let mut child = Child::start(&Task::Consume(order)).await?;
        let Opened {} = child.answer().await?;
        let request = StartDumpRequest {
            uri,
            tables: vec![dumped()],
            parallel,
            bytes_per_second: args.limit_mib << 20,
            ..StartDumpRequest::default()
        };
        Ok(Self {
            child,
            dumps: DumpsClient::new(consumer::connect(address).await?),
            request,
            rows: args.rows(),
            id: String::new(),
        })
    }

    /// Starts the dump and waits until the consumer has acknowledged its last row.
    pub(super) async fn take(&mut self) -> anyhow::Result<Done> {
        let request = self.request.clone();
        self.id = self.dumps.start_dump(request).await?.into_inner().id;
        self.child.answer().await
    }

    /// Waits for the end of the dump, which the next one must not meet, and checks what it counted.
    pub(super) async fn end(mut self) -> anyhow::Result<()> {
        let ended = self.ended().await?;
        let counted = ended.progress.unwrap_or_default().row_count;
        ensure!(
            ended.state == "finished" && counted == self.rows,
            "the dump is {} with {counted} rows: {:?}",
            ended.state,
            ended.trouble
        );
        self.child.end().await
    }

    async fn ended(&mut self) -> anyhow::Result<Dump> {
        let id = self.id.clone();
        let watch = self.dumps.watch_dump(WatchDumpRequest { id }).await?;
        let mut states = watch.into_inner();
        let last = async {
            let mut last = Dump::default();
            while let Some(dump) = states.message().await? {
                last = dump;
            }
            Ok::<_, tonic::Status>(last)
        };
        let last = tokio::time::timeout(END_WITHIN, last).await;
        Ok(last.context("the dump does not end")??)
    }
}
