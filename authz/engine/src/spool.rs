//! A spool: the records of one writer since it started, in a folder of segments, until they are shipped.
//!
//! `ROOT/usage` counts the bytes written and acknowledged of all spools below `ROOT`; the writer holds `ROOT/ID/lock`
//! for as long as it lives, however it dies; `ROOT/ID/NNNNNNNNNNNNNNNNNNNN.segment` begins with the record NNN (see
//! [`crate::segment`]); `ROOT/ID/spare` was one, and all of it is acknowledged. A record survives the death of any
//! process at once, and power loss after the next [`sync`], or once it is in Postgres.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use ring::rand::{SecureRandom, SystemRandom};

use crate::head::Head;
use crate::ratchet::Key;
use crate::record::{Field, Fields, Kind, Position, MAX_FRAME_BYTES};
use crate::segment::Segment;
use crate::start::Start;
use crate::usage::Usage;

/// The writing end of one spool. Dropped in order, it ends with a record that says so.
pub struct Spool {
    folder: PathBuf,
    segment: Segment,
    /// The one before, kept to be written again.
    retired: Option<Segment>,
    position: Position,
    /// Of the next record.
    key: Key,
    head: Arc<Head>,
    start: Arc<Start>,
    usage: Arc<Usage>,
    frame: Vec<u8>,
    _lock: File,
}

impl Spool {
    /// Begins a new spool of `start` below `root` and writes its genesis record at `time_ns`. Without a `worker` it is
    /// the process's own.
    ///
    /// # Errors
    /// The folder, the lock or the first segment cannot be made or written.
    pub fn create(
        root: &Path,
        worker: Option<u32>,
        start: Arc<Start>,
        usage: Arc<Usage>,
        time_ns: u64,
    ) -> io::Result<Self> {
        if !usage.has_reserve() {
            return Err(full());
        }
        let mut id = [0; 16];
        SystemRandom::new().fill(&mut id).map_err(|_| io::Error::other("no random numbers"))?;
        let folder = root.join(data_encoding::HEXLOWER.encode(&id));
        // Under a name that readers pass over until it is locked: a spool without a lock is that of a dead writer.
        let unlocked = root.join(format!(".{}", data_encoding::HEXLOWER.encode(&id)));
        make_folder(&unlocked)?;
        let position = Position::default();
        let made = lock(&unlocked)
            .and_then(|lock| Ok((Segment::create(&segment_path(&unlocked, position), &position)?, lock)));
        let (segment, lock) = match made.and_then(|made| fs::rename(&unlocked, &folder).map(|()| made)) {
            Ok(made) => made,
            Err(error) => {
                fs::remove_dir_all(&unlocked)?;
                return Err(error);
            }
        };
        let (index, key) = start.next_spool();
        let (head, retired, frame) = (Arc::new(Head::new(id)), None, Vec::new());
        let mut spool = Self { folder, segment, retired, position, key, head, start, usage, frame, _lock: lock };
        let start = Arc::clone(&spool.start);
        spool.append(Kind::Genesis, time_ns, |fields| {
            fields.bytes(Field::SpoolId, &id);
            if let Some(worker) = worker {
                fields.number(Field::Worker, u64::from(worker));
            }
            fields.number(Field::ProcessId, u64::from(std::process::id()));
            fields.bytes(Field::Start, start.statement());
            fields.number(Field::StartIndex, index);
        })?;
        start.begun(Arc::clone(&spool.head));
        Ok(spool)
    }

    /// Writes one record and gives its sequence.
    ///
    /// # Errors
    /// It has no room, or nobody could read it. Then it is not in the spool, and the next one takes its sequence.
    pub fn append(&mut self, kind: Kind, time_ns: u64, fill: impl FnOnce(&mut Fields<'_>)) -> io::Result<u64> {
        if !self.usage.has_reserve() {
            return Err(full());
        }
        self.write(kind, time_ns, fill)
    }

    /// Writes where all spools of the process stand.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn heartbeat(&mut self, time_ns: u64) -> io::Result<u64> {
        let heads = self.start.heads();
        self.append(Kind::Heartbeat, time_ns, |fields| fields.bytes(Field::Heads, &heads))
    }

    fn write(&mut self, kind: Kind, time_ns: u64, fill: impl FnOnce(&mut Fields<'_>)) -> io::Result<u64> {
        self.position.begin(&mut self.frame, kind, time_ns);
        fill(&mut Fields(&mut self.frame));
        self.commit()
    }

    /// Ends the record at hand and puts it into the segment. Kept out of line: once for every kind of record.
    #[inline(never)]
    fn commit(&mut self) -> io::Result<u64> {
        let position = self.position.seal(&self.key, &mut self.frame);
        if self.frame.len() > MAX_FRAME_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an audit record is too long to be read again"));
        }
        if !self.segment.fits(self.frame.len()) {
            self.begin_segment()?;
        }
        self.segment.append(&self.frame);
        self.usage.wrote(self.frame.len() as u64);
        self.key.advance();
        self.head.write(&position);
        self.position = position;
        Ok(position.sequence)
    }

    fn begin_segment(&mut self) -> io::Result<()> {
        // Taken away first: whoever ships may put another in its place at any moment.
        let (spare, taken) = (self.folder.join("spare"), self.folder.join("taken"));
        let path = segment_path(&self.folder, self.position);
        let recycled = match self.retired.take() {
            Some(retired) if fs::rename(spare, &taken).is_ok() => {
                match retired.recycle(&taken, &path, &self.position) {
                    Ok(segment) => Some(segment),
                    Err(_) => fs::remove_file(&taken).map(|()| None)?,
                }
            }
            _ => None,
        };
        let segment = recycled.map_or_else(|| Segment::create(&path, &self.position), Ok)?;
        self.retired = Some(std::mem::replace(&mut self.segment, segment));
        Ok(())
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.start.closed(&self.head);
        if self.position.sequence == 0 {
            return; // it never began
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Above the reserve too: it is one record a spool. Where it has no room, the spool counts as one that broke off.
        let _ = self.write(Kind::Close, now.as_nanos() as u64, |_| ());
    }
}

/// Brings everything that is written below `root` to the disk.
///
/// # Errors
/// The first one; the rest is brought there all the same.
pub fn sync(root: &Path) -> io::Result<()> {
    let folders = fs::read_dir(root)?.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir());
    folders.map(|folder| sync_spool(&folder)).chain([sync_folder(root)]).fold(Ok(()), Result::and)
}

fn sync_spool(folder: &Path) -> io::Result<()> {
    let files = fs::read_dir(folder).map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())));
    let synced = match files {
        Ok(files) => files
            .filter(|path| path.extension().is_some_and(|extension| extension == "segment"))
            .map(|path| gone_or(File::open(path).and_then(|file| file.sync_data())))
            .fold(Ok(()), Result::and),
        Err(error) => gone_or(Err(error)),
    };
    synced.and(sync_folder(folder))
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    gone_or(File::open(folder).and_then(|file| file.sync_all()))
}

/// What was shipped meanwhile is safe.
fn gone_or(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn full() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "the spools hold all that they may")
}

pub(crate) fn make_folder(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn segment_path(folder: &Path, position: Position) -> PathBuf {
    folder.join(format!("{:020}.segment", position.sequence + 1))
}

fn lock(folder: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(folder.join("lock"))?;
    // SAFETY: flock on a descriptor that we own.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ratchet::Root;
    use crate::record::{authenticate, verify};
    use crate::segment::{committed, SEGMENT_BYTES};

    fn open(root: &Path, bound: u64) -> (Spool, Arc<Usage>) {
        let usage = Arc::new(Usage::open(root, bound).expect("usage"));
        (Spool::create(root, Some(0), start(), Arc::clone(&usage), 1).expect("spool"), usage)
    }

    fn start() -> Arc<Start> {
        let contents = [&b"PLTSTRT1"[..], &[1; 32], &[2; 32], b"statement"].concat();
        Arc::new(Start::parse(&contents).expect("a start"))
    }

    fn fields_of<'a>(record: &crate::record::Record<'a>) -> Vec<(Field, &'a [u8])> {
        record.fields().expect("fields")
    }

    #[test]
    fn a_spool_says_of_which_start_it_is_and_that_it_is_closed() {
        let root = tempfile::tempdir().expect("a folder");
        let usage = Arc::new(Usage::open(root.path(), 1000).expect("usage"));
        let start = start();
        let create = || Spool::create(root.path(), None, Arc::clone(&start), Arc::clone(&usage), 1).expect("spool");
        drop(start.next_spool());
        let mut spool = create();
        while spool.append(Kind::Decision, 2, |_| ()).is_ok() {}
        assert_eq!(start.heads()[..24], [&spool.head.read()[..16], &spool.position.sequence.to_le_bytes()].concat());
        drop(spool);
        assert_eq!(start.heads(), b"");
        let bytes = frames(root.path());
        let (records, _) = verify(Position::default(), &bytes).expect("a chain");
        let genesis = fields_of(&records[0]);
        assert_eq!(genesis[2..], [(Field::Start, &b"statement"[..]), (Field::StartIndex, &1_u64.to_le_bytes())]);
        assert_eq!(records.last().and_then(|record| record.kind()), Some(Kind::Close), "though it was full");
        let mut roots = Root::new([1; 32]);
        drop(roots.next_spool());
        assert_eq!(authenticate(&mut roots.next_spool(), &records), Ok(()));
    }

    #[test]
    fn a_heartbeat_tells_where_all_spools_stand() {
        let root = tempfile::tempdir().expect("a folder");
        let usage = Arc::new(Usage::open(root.path(), u64::MAX).expect("usage"));
        let start = start();
        let create = || Spool::create(root.path(), None, Arc::clone(&start), Arc::clone(&usage), 1).expect("spool");
        let (mut process, mut other) = (create(), create());
        other.append(Kind::Decision, 2, |_| ()).expect("written");
        let stood = [process.head.read(), other.head.read()].concat();
        process.heartbeat(3).expect("written");
        let segment = segment_path(&process.folder, Position::default());
        let bytes = committed(&fs::read(segment).expect("read")).to_vec();
        let (records, position) = verify(Position::default(), &bytes).expect("a chain");
        assert_eq!(fields_of(&records[1]), [(Field::Heads, &stood[..])]);
        assert_eq!(process.head.read()[24..], position.link);
    }

    #[test]
    fn all_that_is_there_is_synced() {
        let root = tempfile::tempdir().expect("a folder");
        let (mut spool, _) = open(root.path(), u64::MAX);
        let mut write = || spool.append(Kind::Decision, 2, |fields| fields.bytes(Field::Path, &vec![b'x'; 1_000_000]));
        (0..9).for_each(|_| assert!(write().is_ok()));
        sync(root.path()).expect("synced");
        assert_eq!(sync(&root.path().join("gone")).map_err(|error| error.kind()), Err(io::ErrorKind::NotFound));
    }

    fn segments(root: &Path) -> Vec<PathBuf> {
        let folder =
            fs::read_dir(root).expect("root").map(|entry| entry.expect("entry").path()).find(|path| path.is_dir());
        let mut files: Vec<PathBuf> =
            fs::read_dir(folder.expect("a spool")).expect("spool").map(|entry| entry.expect("entry").path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "segment"));
        files.sort();
        files
    }

    /// All frames of the only spool below `root`.
    fn frames(root: &Path) -> Vec<u8> {
        segments(root).iter().flat_map(|file| committed(&fs::read(file).expect("read")).to_vec()).collect()
    }

    #[test]
    fn segments_follow_each_other_in_one_chain() {
        let root = tempfile::tempdir().expect("a folder");
        let (mut spool, _) = open(root.path(), u64::MAX);
        let path = vec![b'x'; 64 * 1024];
        for _ in 0..130 {
            spool.append(Kind::Decision, 2, |fields| fields.bytes(Field::Path, &path)).expect("written");
        }
        let files = segments(root.path());
        assert_eq!(files.len(), 3);
        let bytes = frames(root.path());
        let (records, position) = verify(Position::default(), &bytes).expect("a chain");
        assert_eq!((records[0].kind(), position.sequence), (Some(Kind::Genesis), 131));
    }

    #[test]
    fn a_segment_that_was_acknowledged_is_used_again() {
        let root = tempfile::tempdir().expect("a folder");
        let (mut spool, _) = open(root.path(), u64::MAX);
        let mut write = || spool.append(Kind::Decision, 2, |fields| fields.bytes(Field::Path, &vec![b'x'; 1_000_000]));
        (0..4).for_each(|_| assert!(write().is_ok()));
        write().expect("a second segment");
        let [first, second] = &segments(root.path())[..] else { panic!("two segments") };
        let spare = first.with_file_name("spare");
        fs::rename(first, &spare).expect("renamed");
        (0..4).for_each(|_| assert!(write().is_ok()));
        assert!(!spare.exists());
        let [_, third] = &segments(root.path())[..] else { panic!("two segments") };
        let bytes = [second, third].map(|file| committed(&fs::read(file).expect("read")).to_vec()).concat();
        let (mut sequences, mut rest) = (Vec::new(), &bytes[..]);
        while let Some((record, length)) = crate::record::read_frame(rest).expect("frames") {
            sequences.push(record.sequence());
            rest = &rest[length..];
        }
        assert_eq!(sequences, [6, 7, 8, 9, 10]);
    }

    #[test]
    fn a_spare_that_is_no_longer_at_hand_is_removed() {
        let root = tempfile::tempdir().expect("a folder");
        let (mut spool, _) = open(root.path(), u64::MAX);
        let mut write = || spool.append(Kind::Decision, 2, |fields| fields.bytes(Field::Path, &vec![b'x'; 1_000_000]));
        (0..9).for_each(|_| assert!(write().is_ok()));
        let files = segments(root.path());
        fs::rename(&files[0], files[0].with_file_name("spare")).expect("renamed");
        (0..4).for_each(|_| assert!(write().is_ok()));
        let folder = fs::read_dir(files[0].parent().expect("the spool")).expect("spool");
        let mut names: Vec<_> = folder.map(|entry| entry.expect("entry").file_name()).collect();
        names.sort();
        let [.., last] = &segments(root.path())[..] else { panic!("segments") };
        let kept = [&files[1], &files[2], last].map(|file| file.file_name().expect("a name").to_owned());
        assert_eq!(names, [&kept[..], &["lock".into()]].concat());
    }

    #[test]
    fn usage_bounds_what_is_held() {
        let root = tempfile::tempdir().expect("a folder");
        let (mut spool, usage) = open(root.path(), 1000);
        while usage.has_room() {
            spool.append(Kind::Decision, 2, |fields| fields.number(Field::Status, 200)).expect("written");
        }
        assert!(usage.held() >= 1000);
        let shipper = Usage::open(root.path(), 1000).expect("usage");
        shipper.acknowledge(500);
        assert!(usage.has_room());
    }

    #[test]
    fn a_living_writer_holds_its_lock() {
        let root = tempfile::tempdir().expect("a folder");
        let (spool, _) = open(root.path(), 1000);
        let file = File::open(spool.folder.join("lock")).expect("lock");
        // SAFETY: flock on a descriptor that we own.
        let try_lock = || unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
        assert_ne!(try_lock(), 0);
        drop(spool);
        assert_eq!(try_lock(), 0);
    }

    /// Run by the tests below in a process of its own.
    #[test]
    #[ignore = "writes until it is killed"]
    fn writes_until_killed() {
        let root = PathBuf::from(std::env::var_os("PELTAST_TEST_SPOOL").expect("a folder"));
        let (mut spool, _) = open(&root, u64::MAX);
        loop {
            spool.append(Kind::Decision, 2, |fields| fields.bytes(Field::Path, &[b'x'; 3000])).expect("written");
        }
    }

    /// Run by the tests below in a process of its own: the limit is the whole process's.
    #[test]
    #[ignore = "limits the size of files"]
    fn writes_past_a_limit() {
        let root = PathBuf::from(std::env::var_os("PELTAST_TEST_SPOOL").expect("a folder"));
        let (mut spool, usage) = open(&root, u64::MAX);
        let mut write = || spool.append(Kind::Decision, 2, |fields| fields.bytes(Field::Path, &vec![b'x'; 1_000_000]));
        limit_file_size(10_000);
        let results: Vec<bool> = (0..6).map(|_| write().is_ok()).collect();
        assert_eq!(results, [true, true, true, true, false, false]);
        assert_eq!(segments(&root).len(), 1, "nothing is left of a segment that could not be made");
        limit_file_size(2 * SEGMENT_BYTES as u64);
        assert_eq!(write().expect("written"), 6);
        assert_eq!(verify(Position::default(), &frames(&root)).expect("a chain").1.sequence, 6);
        assert_eq!(usage.held(), frames(&root).len() as u64);
    }

    fn limit_file_size(bytes: u64) {
        let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: sets a limit and a disposition of this process, which is the test's own.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
        }
    }

    fn in_a_process_of_its_own(test: &str, root: &Path) -> std::process::Command {
        let mut command = std::process::Command::new(std::env::current_exe().expect("the test binary"));
        command.args(["--exact", "--ignored", test]).env("PELTAST_TEST_SPOOL", root);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        command
    }

    #[test]
    fn what_was_written_survives_the_writer() {
        let root = tempfile::tempdir().expect("a folder");
        let mut child =
            in_a_process_of_its_own("spool::tests::writes_until_killed", root.path()).spawn().expect("child");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        let usage = Usage::open(root.path(), u64::MAX).expect("usage");
        while usage.held() < 5 * SEGMENT_BYTES as u64 {
            assert!(std::time::Instant::now() < deadline, "the child writes nothing");
            std::thread::yield_now();
        }
        child.kill().expect("killed");
        child.wait().expect("ended");
        let (_, position) = verify(Position::default(), &frames(root.path())).expect("whole records, in a chain");
        assert!(position.sequence > 1000, "{position:?}");
        let folder = segments(root.path())[0].parent().expect("the spool").to_owned();
        let lock = File::open(folder.join("lock")).expect("lock");
        // SAFETY: flock on a descriptor that we own.
        let locked = unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
        assert_eq!(locked, 0, "a dead writer holds none");
    }

    #[test]
    fn where_no_segment_can_be_made_the_chain_waits_and_goes_on() {
        let root = tempfile::tempdir().expect("a folder");
        let status = in_a_process_of_its_own("spool::tests::writes_past_a_limit", root.path()).status().expect("child");
        assert!(status.success());
    }

    #[test]
    fn a_record_that_nobody_could_read_is_not_written() {
        let root = tempfile::tempdir().expect("a folder");
        let (mut spool, usage) = open(root.path(), u64::MAX);
        let held = usage.held();
        let mut write =
            |length: usize| spool.append(Kind::Act, 2, |fields| fields.bytes(Field::Object, &vec![b'x'; length]));
        assert_eq!(write(1 << 20).expect_err("too long").kind(), io::ErrorKind::InvalidInput);
        assert_eq!(usage.held(), held);
        assert_eq!(write((1 << 20) - 26).expect("as long as can be"), 2);
        assert_eq!(verify(Position::default(), &frames(root.path())).expect("a chain").1.sequence, 2);
    }

    #[test]
    fn a_full_spool_takes_nothing_beyond_its_reserve() {
        let root = tempfile::tempdir().expect("a folder");
        let (mut spool, usage) = open(root.path(), 80_000);
        let mut write = || spool.append(Kind::End, 2, |fields| fields.bytes(Field::Path, &[b'x'; 900]));
        while usage.has_room() {
            write().expect("written");
        }
        assert!(usage.held() < 81_000);
        while write().is_ok() {}
        assert!((90_000..91_000).contains(&usage.held()), "{}", usage.held());
        let spools = || fs::read_dir(root.path()).expect("root").count();
        let before = spools();
        assert!(Spool::create(root.path(), Some(1), start(), Arc::clone(&usage), 3).is_err());
        assert_eq!(spools(), before, "nothing is left of a spool that could not begin");
        usage.acknowledge(20_000);
        write().expect("written again");
    }
}
