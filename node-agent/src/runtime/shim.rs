//! One Pod's shim, from the async side: requests run on blocking threads with the protocol's own
//! client; the event stream, which waits for days, has an async socket instead of a thread.
use super::program::ShimProgram;
use crate::pod::event::Exit as PodExit;
use jiff::Timestamp;
use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use trellis_shim_protocol::{
    Client, ClientError, ContainerState, CreateContainer, Event, Exec, Exit, Moment, Reply, Request, SandboxConfig,
    SandboxState,
    codec::{CodecError, Decoder, encode},
    launch::{LaunchError, launch, launch_sealed},
    offered_versions,
};

/// Label of a container that holds its name in the Pod.
pub const LABEL_NAME: &str = "trellis.container";
/// Label of a container that holds which start of it this is.
pub const LABEL_ATTEMPT: &str = "trellis.attempt";

/// Why something could not be done through a shim.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// It did not start.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A request failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Its event stream broke.
    #[error("event stream of the shim at {path}: {source}")]
    Stream {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its event stream carries something else.
    #[error("event stream of the shim at {path}: {source}")]
    Codec {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: CodecError,
    },
    /// The agent is going down.
    #[error("interrupted: the agent is ending")]
    Ending,
}

impl ShimError {
    /// No shim runs behind the socket.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Client(e) if e.is_gone())
    }
}

/// A shim's socket.
#[derive(Clone, Debug)]
pub struct Shim {
    socket: PathBuf,
}

impl Shim {
    /// The shim whose folder is `dir`; it may or may not run.
    pub fn at(dir: &Path) -> Self {
        Self { socket: dir.join(trellis_shim_protocol::SOCKET) }
    }

    /// What it has written down, for whoever finds it dead.
    pub fn state_file(&self) -> PathBuf {
        self.socket.with_file_name(trellis_shim_protocol::STATE)
    }

    /// Starts one.
    pub async fn launch(program: &ShimProgram, config: SandboxConfig) -> Result<Self, ShimError> {
        let shim = Self { socket: config.socket() };
        let program = program.clone();
        let started = tokio::task::spawn_blocking(move || match program.sealed() {
            Some(sealed) => launch_sealed(program.path(), sealed.as_fd(), &config).map(drop),
            None => launch(program.path(), &config).map(drop),
        });
        started.await.map_err(|_| ShimError::Ending)??;
        Ok(shim)
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Client) -> Result<T, ClientError> + Send + 'static,
    ) -> Result<T, ShimError> {
        let socket = self.socket.clone();
        let done = tokio::task::spawn_blocking(move || work(&mut Client::connect(&socket)?));
        Ok(done.await.map_err(|_| ShimError::Ending)??)
    }

    /// What it holds.
    pub async fn state(&self) -> Result<SandboxState, ShimError> {
        self.run(Client::state).await
    }

    /// The Pod's network namespace, and an rtnetlink socket in it.
    pub async fn netns(&self) -> Result<(OwnedFd, OwnedFd), ShimError> {
        self.run(Client::netns).await
    }

    /// Makes a container and lets it run.
    pub async fn create_and_start(&self, create: CreateContainer) -> Result<ContainerState, ShimError> {
        let socket = self.socket.clone();
        self.run(move |c| {
            let id = create.id.clone();
            let made = c.create(create).and_then(|state| c.start(&id).map(|()| state));
            let mut state = made.inspect_err(|_| delete_half(&socket, &id))?;
            if state.started_at.is_none() {
                let now = Timestamp::now().as_nanosecond();
                state.started_at = Some(Moment { wall_nanos: u64::try_from(now).unwrap_or(0), ..Moment::default() });
            }
            Ok(state)
        })
        .await
    }

    /// Signals a container.
    pub async fn signal(&self, id: String, signal: i32, all: bool) -> Result<(), ShimError> {
        self.run(move |c| c.signal(&id, signal, all)).await
    }

    /// Removes a container with its writable layer.
    pub async fn delete(&self, id: String) -> Result<(), ShimError> {
        self.run(move |c| c.delete(&id, true)).await
    }

    /// Runs a process without terminal.
    pub async fn exec(&self, exec: Exec, stdio: [OwnedFd; 3]) -> Result<u64, ShimError> {
        self.run(move |c| {
            let [i, o, e] = &stdio;
            c.exec(exec, [i.as_fd(), o.as_fd(), e.as_fd()])
        })
        .await
    }

    /// Runs a process on a terminal.
    pub async fn exec_tty(&self, exec: Exec) -> Result<(u64, OwnedFd), ShimError> {
        self.run(move |c| c.exec_tty(exec)).await
    }

    /// Signals an exec'd process.
    pub async fn signal_exec(&self, exec_id: u64, signal: i32) -> Result<(), ShimError> {
        self.run(move |c| c.signal_exec(exec_id, signal)).await
    }

    /// Ends the Pod: everything in it is killed. A shim that is gone is fine.
    pub async fn shutdown(&self) -> Result<(), ShimError> {
        let socket = self.socket.clone();
        let done = tokio::task::spawn_blocking(move || Client::connect(&socket)?.shutdown());
        match done.await.map_err(|_| ShimError::Ending)? {
            Err(e) if e.is_gone() => Ok(()),
            other => Ok(other?),
        }
    }

    /// Awaits the end of an exec'd process without occupying a thread.
    pub async fn wait_exec(&self, exec_id: u64) -> Result<Exit, ShimError> {
        let mut stream = self.open(&Request::WaitExec { exec_id }).await?;
        match stream.next().await? {
            Some(Reply::Exited(exit)) => Ok(exit),
            Some(Reply::Error { code, message }) => Err(ClientError::Refused { code, message }.into()),
            _ => Err(stream.broken(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// The events after `after`.
    pub async fn events(&self, after: u64) -> Result<Stream, ShimError> {
        self.open(&Request::Events { after }).await
    }

    async fn open(&self, request: &Request) -> Result<Stream, ShimError> {
        let path = self.socket.clone();
        let io = |source| ShimError::Stream { path: path.clone(), source };
        let codec = |source| ShimError::Codec { path: path.clone(), source };
        let mut socket = UnixStream::connect(&path).await.map_err(io)?;
        let hello = encode(&Request::Hello { versions: offered_versions() }).map_err(codec)?;
        socket.write_all(&hello).await.map_err(io)?;
        let mut stream = Stream { socket, decoder: Decoder::default(), path: path.clone() };
        match stream.next().await? {
            Some(Reply::Hello { .. }) => {}
            Some(Reply::Error { code, message }) => return Err(ClientError::Refused { code, message }.into()),
            _ => return Err(stream.broken(io::ErrorKind::UnexpectedEof.into())),
        }
        let bytes = encode(request).map_err(codec)?;
        stream.socket.write_all(&bytes).await.map_err(io)?;
        Ok(stream)
    }
}

/// Half a container helps nobody, and one whose making was given up must not be there later: its id
/// is never used again. On a connection of its own: an answer may be due on the one that failed.
fn delete_half(socket: &Path, id: &str) {
    match Client::connect(socket).and_then(|mut c| c.delete(id, true)) {
        Err(error) if !error.is_gone() => {
            tracing::warn!(%id, %error, "cannot delete a container that did not start");
        }
        _ => {}
    }
}

/// A connection on which answers arrive by themselves.
#[derive(Debug)]
pub struct Stream {
    socket: UnixStream,
    decoder: Decoder<Reply>,
    path: PathBuf,
}

impl Stream {
    /// The next answer; `None` when the shim has closed: it is shut down or dead.
    async fn next(&mut self) -> Result<Option<Reply>, ShimError> {
        loop {
            let frame = self.decoder.next_frame();
            if let Some(reply) = frame.map_err(|source| ShimError::Codec { path: self.path.clone(), source })? {
                return Ok(Some(reply));
            }
            let mut buffer = [0; 2048];
            match self.socket.read(&mut buffer).await {
                Ok(0) => return Ok(None),
                Ok(n) => self.decoder.feed(&buffer[..n]),
                Err(source) => return Err(self.broken(source)),
            }
        }
    }

    /// The next event; `None` when the shim is gone.
    pub async fn next_event(&mut self) -> Result<Option<Event>, ShimError> {
        match self.next().await? {
            Some(Reply::Event(event)) => Ok(Some(event)),
            Some(Reply::Error { code, message }) => Err(ClientError::Refused { code, message }.into()),
            Some(_) => Err(self.broken(io::ErrorKind::InvalidData.into())),
            None => Ok(None),
        }
    }

    fn broken(&self, source: io::Error) -> ShimError {
        ShimError::Stream { path: self.path.clone(), source }
    }
}

/// A shim's moment as wall time.
pub fn wall(at: Moment) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(at.wall_nanos)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A shim's exit in the Pod machine's words; the message is read elsewhere.
pub fn exit(exit: &Exit, started: Option<Moment>, message: String) -> PodExit {
    PodExit {
        code: exit.code,
        signal: exit.signal,
        oom_killed: exit.oom_killed,
        started: started.map(wall),
        finished: wall(exit.at),
        message,
    }
}

/// The container's name and attempt, as its labels say.
pub fn labels(state: &ContainerState) -> Option<(String, u32)> {
    let get = |name: &str| state.labels.get(name);
    Some((get(LABEL_NAME)?.clone(), get(LABEL_ATTEMPT)?.parse().ok()?))
}

/// Labels for a new container.
pub fn make_labels(name: &str, attempt: u32) -> BTreeMap<String, String> {
    BTreeMap::from([(LABEL_NAME.to_owned(), name.to_owned()), (LABEL_ATTEMPT.to_owned(), attempt.to_string())])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::runtime::fake_shim::{hello, serve};
    use std::sync::{Arc, Mutex};
    use trellis_shim_protocol::{ErrorCode, LogConfig, Rootfs};

    #[tokio::test]
    async fn what_was_not_made_is_deleted_whatever_has_become_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&asked);
        serve(dir.path(), move |request| match request {
            Request::Hello { .. } => hello(),
            Request::CreateContainer(_) => {
                Reply::Error { code: ErrorCode::Failed, message: "it took longer than 60 s".to_owned() }
            }
            Request::DeleteContainer { id, remove_upper } => {
                told.lock().unwrap().push((id.clone(), *remove_upper));
                Reply::Done
            }
            other => panic!("{other:?}"),
        });
        let create = CreateContainer {
            id: "a.0.x".to_owned(),
            labels: BTreeMap::new(),
            rootfs: Rootfs::Path { path: "/".into() },
            spec: serde_json::Value::Null,
            cgroup_namespace: false,
            log: LogConfig::file("/dev/null"),
            stdin: false,
            sub_paths: Vec::new(),
        };
        let error = Shim::at(dir.path()).create_and_start(create).await.unwrap_err();
        assert_eq!(error.to_string(), "it took longer than 60 s");
        assert_eq!(*asked.lock().unwrap(), [("a.0.x".to_owned(), true)]);
    }
}
