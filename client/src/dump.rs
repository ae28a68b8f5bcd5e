//! Existing rows on demand: [`Client::dump`](crate::Client::dump) starts a dump, its handle follows it.
//!
//! The rows come on the consumer's own stream, between its changes, as
//! [`Change::Snapshot`](crate::Change::Snapshot). A handle holds nothing open: dropping it leaves the
//! dump running, and [`Client::find_dump`](crate::Client::find_dump) makes another from its id.

mod progress;

use std::time::Duration;

use pgcapture_proto::admin::v1::{
    CancelDumpRequest, Dump, GetDumpRequest, PageRange, PauseDumpRequest, ResumeDumpRequest,
    RetryDumpRequest, StartDumpRequest, dumps_client::DumpsClient,
};
use tonic::{Request, Response, Status, transport::Channel};

pub use progress::{DumpEvents, DumpProgress, DumpState, DumpTrouble};

use crate::{
    client::{Client, connect},
    error::Error,
    row::Row,
};

/// A dump that is being described. Nothing is sent before `start`.
#[derive(Clone, Debug)]
#[must_use = "call start"]
pub struct StartDump {
    client: Client,
    stream: String,
    consumer: Option<String>,
    request: StartDumpRequest,
}

impl StartDump {
    pub(crate) fn new(client: Client, stream: String) -> Self {
        Self {
            client,
            stream,
            consumer: None,
            request: StartDumpRequest::default(),
        }
    }

    /// The consumer that gets the rows, by the name under which it subscribes. Without it the
    /// consumer whose uri is the stream's name alone.
    pub fn into(mut self, consumer: impl Into<String>) -> Self {
        self.consumer = Some(consumer.into());
        self
    }

    /// Wants the rows of `T`'s table; may be called for several.
    pub fn table<T: Row>(self) -> Self {
        let name = format!("{}.{}", T::SCHEMA, T::TABLE);
        self.tables([name])
    }

    /// Wants the rows of these tables, each as `schema.table` or a pattern such as `public.*`.
    pub fn tables<S: Into<String>>(mut self, tables: impl IntoIterator<Item = S>) -> Self {
        let tables = tables.into_iter().map(Into::into);
        self.request.tables.extend(tables);
        self
    }

    /// Wants only these heap pages of the one table; without a last one, up to its end.
    pub fn pages(mut self, first: u32, last: Option<u32>) -> Self {
        self.request.pages = Some(PageRange { first, last });
        self
    }

    /// How many ranges of pages are read at a time.
    pub fn parallel(mut self, ranges: u32) -> Self {
        self.request.parallel = ranges;
        self
    }

    /// Reads no faster than this.
    pub fn bytes_per_second(mut self, bytes: u64) -> Self {
        self.request.bytes_per_second = bytes;
        self
    }

    /// Before other dumps when higher than 0, after them when lower.
    pub fn priority(mut self, priority: i32) -> Self {
        self.request.priority = priority;
        self
    }

    /// Rests so long after each range.
    pub fn cool_down(mut self, pause: Duration) -> Self {
        let micros = i64::try_from(pause.as_micros());
        self.request.cool_down_micros = micros.unwrap_or(i64::MAX);
        self
    }

    /// Starts the dump; returns once it is durable. A consumer that connects later gets the rows then.
    ///
    /// # Errors
    /// No node could be reached, or it refuses: an unknown stream, a table that is not there or may
    /// not be read, no replica. When the connection breaks before the answer nobody knows whether
    /// the dump was started: look before starting it again.
    pub async fn start(mut self) -> Result<DumpHandle, Error> {
        if self.stream.is_empty() || self.consumer.as_deref() == Some("") {
            let what = "a stream and a consumer have names";
            return Err(Error::Config(what.to_owned()));
        }
        if self.request.tables.is_empty() {
            let what = "a dump needs at least one table";
            return Err(Error::Config(what.to_owned()));
        }
        self.request.uri = match &self.consumer {
            Some(consumer) => format!("{}/{consumer}", self.stream),
            None => self.stream,
        };
        let mut dumps = dumps(&self.client).await?;
        let request = authorized(&self.client, self.request)?;
        let dump = dumps.start_dump(request).await?.into_inner();
        Ok(DumpHandle {
            client: self.client,
            id: dump.id,
        })
    }
}

/// A dump of the cluster, by its id. Cheap to clone; dropping it leaves the dump running.
#[derive(Clone, Debug)]
pub struct DumpHandle {
    client: Client,
    id: String,
}

/// One call about a dump, tried at each node.
macro_rules! ask {
    ($self:ident, $method:ident, $request:ident) => {{
        let mut dumps = dumps(&$self.client).await?;
        let id = $self.id.clone();
        let request = authorized(&$self.client, $request { id })?;
        answer(dumps.$method(request).await)
    }};
}

impl DumpHandle {
    pub(crate) fn new(client: Client, id: String) -> Self {
        Self { client, id }
    }

    /// Its name, such as `d-41`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How far it is now.
    ///
    /// # Errors
    /// No node could be reached, or there is no such dump.
    pub async fn get(&self) -> Result<DumpProgress, Error> {
        ask!(self, get_dump, GetDumpRequest)
    }

    /// How far it is, now and after each change; ends after the final state. A `Stream`.
    ///
    /// Goes to the next node when one goes away. Dropping it changes nothing.
    pub fn progress(&self) -> DumpEvents {
        DumpEvents::new(self.client.clone(), self.id.clone())
    }

    /// Waits until it is finished, failed or cancelled.
    ///
    /// # Errors
    /// There is no such dump, or the client's limit of attempts was reached.
    pub async fn wait(&self) -> Result<DumpProgress, Error> {
        let mut events = self.progress();
        let mut last = None;
        while let Some(progress) = events.try_next().await? {
            last = Some(progress);
        }
        last.ok_or(Error::Closed)
    }

    /// Begins no more ranges; those that run end.
    ///
    /// # Errors
    /// No node could be reached, or the dump has ended.
    pub async fn pause(&self) -> Result<DumpProgress, Error> {
        ask!(self, pause_dump, PauseDumpRequest)
    }

    /// Goes on where it was paused.
    ///
    /// # Errors
    /// No node could be reached, or the dump has ended.
    pub async fn resume(&self) -> Result<DumpProgress, Error> {
        ask!(self, resume_dump, ResumeDumpRequest)
    }

    /// Ends it for good; rows that were delivered stay delivered.
    ///
    /// # Errors
    /// No node could be reached, or there is no such dump.
    pub async fn cancel(&self) -> Result<DumpProgress, Error> {
        ask!(self, cancel_dump, CancelDumpRequest)
    }

    /// Runs again what has failed; what was finished stays finished.
    ///
    /// # Errors
    /// No node could be reached, or nothing has failed.
    pub async fn retry(&self) -> Result<DumpProgress, Error> {
        ask!(self, retry_dump, RetryDumpRequest)
    }
}

fn answer(answered: Result<Response<Dump>, Status>) -> Result<DumpProgress, Error> {
    Ok(answered?.into_inner().into())
}

/// Connects to the first node that answers.
async fn dumps(client: &Client) -> Result<DumpsClient<Channel>, Error> {
    let mut last = Error::Config("no endpoint".to_owned());
    for endpoint in client.settings().endpoints()? {
        match connect(&endpoint).await {
            Ok(channel) => return Ok(DumpsClient::new(channel)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A request with the token.
pub(crate) fn authorized<T>(client: &Client, message: T) -> Result<Request<T>, Error> {
    let mut request = Request::new(message);
    if let Some(authorization) = client.settings().authorization()? {
        let metadata = request.metadata_mut();
        metadata.insert("authorization", authorization);
    }
    Ok(request)
}
