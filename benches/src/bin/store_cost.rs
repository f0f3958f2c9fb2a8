//! What the store costs: bits per token, bytes written, time to open and to draw, memory.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use mynah::example::{Example, ExampleId};
use mynah::replay::{Memory, Newcomer, Policy};
use mynah_benches::corpus::{self, Line};
use mynah_benches::model::ModelArgs;
use mynah_benches::report::{self, OutputArgs, Report, table};
use mynah_benches::spread::Spread;
use mynah_benches::store::coding;
use mynah_benches::store::engines::Engine;
use mynah_benches::store::written::Written;
use mynah_benches::store::{open_log, open_unsynced_log};
use mynah_models::tokenizer::Tokenizer;
use mynah_models::weights::Gguf;
use serde::{Deserialize, Serialize};

/// Measure what the store costs, beside other ways to keep the same records.
///
/// 1. Bits per token, all told for ours (headers, fields, padding, tables), the bare code for the others.
/// 2. Bytes per batch that reach the device (dirtied pages, /proc/self/io) and that are handed to the system, each batch durable
///    before the next. A payload byte is one of the ids in LEB128, which is what a store without compression keeps.
/// 3. Time to open a store, to draw and read a batch, memory per record; in a process of its own.
#[derive(Debug, Parser)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Example:
  store_cost --short data/persona --short data/assistant10 \\
             --long data/general/text --long data/trace-short/meetingbank --dictionary data/english8"
)]
struct Arguments {
    #[command(subcommand)]
    hidden: Option<Hidden>,
    #[command(flatten)]
    cost: CostArgs,
}

#[derive(Debug, Subcommand)]
enum Hidden {
    /// Open a log and draw from it
    #[command(hide = true)]
    Probe {
        /// The log's file
        file: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct CostArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Texts of short records: a file, or a folder with files below it; may be repeated
    #[arg(long, value_name = "PATH")]
    short: Vec<PathBuf>,
    /// Texts of long records, of which those with 200 tokens and more are taken; may be repeated
    #[arg(long, value_name = "PATH")]
    long: Vec<PathBuf>,
    /// Other texts, that zstd's dictionary is trained on; may be repeated
    #[arg(long, value_name = "PATH")]
    dictionary: Vec<PathBuf>,
    /// Where stores are made for the time of the measurement; must be on a real device
    #[arg(long, value_name = "DIR", default_value = ".")]
    folder: PathBuf,
    /// Records of the large store
    #[arg(long, default_value_t = 1_000_000)]
    records: usize,
    /// Mebibytes of the store whose opening is timed
    #[arg(long, default_value_t = 64)]
    mebibytes: u64,
    /// Try the program itself in seconds, on text of its own
    #[arg(long)]
    smoke: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Records of a batch, made durable by one sync.
const BATCH: usize = 16;
/// Batches that each store takes.
const BATCHES: usize = 64;
/// From here on a record is a long one.
const LONG_TOKENS: usize = 200;

#[derive(Debug, Default, Serialize)]
struct Outcome {
    coding: Vec<CodingCost>,
    writing: Vec<WritingCost>,
    scale: Vec<ScaleCost>,
}

#[derive(Debug, Serialize)]
struct CodingCost {
    records: String,
    count: usize,
    mean_tokens: f64,
    /// Name and bits per token.
    bits_per_token: Vec<(String, f64)>,
    goal: f64,
    aim: f64,
}

#[derive(Debug, Serialize)]
struct WritingCost {
    engine: &'static str,
    records: &'static str,
    records_per_batch: usize,
    payload_bytes_per_batch: f64,
    device_bytes_per_batch: f64,
    handed_over_bytes_per_batch: f64,
    /// Bytes handed to the system over payload bytes: the same on every device.
    amplification: f64,
    /// Device bytes over payload bytes.
    device_amplification: f64,
    seconds_per_batch: f64,
}

#[derive(Debug, Serialize)]
struct ScaleCost {
    what: String,
    #[serde(flatten)]
    probe: Probe,
}

/// What a fresh process finds out about a log.
#[derive(Debug, Serialize, Deserialize)]
struct Probe {
    records: usize,
    log_bytes: u64,
    open_seconds: f64,
    memory_bytes_per_record: f64,
    /// Drawing a batch from a memory of all records.
    draw_seconds: Spread,
    /// The same, and reading it.
    draw_and_read_seconds: Spread,
}

fn main() -> ExitCode {
    report::exit(run())
}

fn run() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match arguments.hidden {
        Some(Hidden::Probe { file }) => {
            let report = serde_json::to_string(&probe(&file)?)?;
            // The parent reads it.
            std::io::Write::write_all(&mut std::io::stdout(), report.as_bytes())?;
            Ok(())
        }
        None => measure(arguments.cost),
    }
}

fn measure(mut args: CostArgs) -> anyhow::Result<()> {
    let report = Report::start("store_cost", args.output);
    let folder = tempfile::tempdir_in(&args.folder).context("cannot make a folder for stores; give --folder")?;
    if args.smoke {
        args = smoke(args, folder.path())?;
    }
    if args.short.is_empty() || args.dictionary.is_empty() {
        bail!("give at least --short and --dictionary; --help has an example");
    }
    let file = args.model.file(args.smoke)?;
    let tokenizer = Tokenizer::from_gguf(Gguf::open(&file)?.as_ref())?;
    let dictionary: Vec<String> = corpus::read(&args.dictionary)?.iter().map(Line::text).collect();
    let dictionary = coding::dictionary(&dictionary)?;
    let mut outcome = Outcome::default();

    let short = Records::read(&args.short, &tokenizer, 0)?;
    report.note("bits of short records");
    outcome.coding.push(coding_cost("short", &short, &dictionary, folder.path(), [12.0, 9.0])?);
    let mut to_write = vec![("short", BATCH, short.examples.as_slice()), ("short", 1, &short.examples)];
    let long;
    if !args.long.is_empty() {
        long = Records::read(&args.long, &tokenizer, LONG_TOKENS)?;
        report.note("bits of long records");
        outcome.coding.push(coding_cost("long", &long, &dictionary, folder.path(), [10.5, 8.5])?);
        to_write.push(("long", BATCH, &long.examples));
    }
    for (name, records_per_batch, examples) in to_write {
        for engine in Engine::ALL {
            report.note(&format!("{}, {records_per_batch} {name} records a batch", engine.name()));
            outcome.writing.push(writing_cost(engine, name, examples, records_per_batch, folder.path())?);
        }
    }
    for records in [1000.min(args.records), args.records] {
        report.note(&format!("a store of {records} records"));
        let until = |len: usize, _| len >= records;
        outcome.scale.push(scale_cost(format!("{records} records"), &short.examples, folder.path(), until)?);
    }
    report.note(&format!("a store of {} MiB", args.mebibytes));
    let until = |_, bytes: u64| bytes >= args.mebibytes << 20;
    outcome.scale.push(scale_cost(format!("{} MiB", args.mebibytes), &short.examples, folder.path(), until)?);
    report.finish(&outcome, || text(&outcome))
}

/// Settings that need neither model nor data.
fn smoke(args: CostArgs, folder: &Path) -> anyhow::Result<CostArgs> {
    let text = folder.join("text.txt");
    let words = ["a", "bird", "that", "speaks", "learns", "what", "it", "is", "taught", "and", "keeps", "its", "words"];
    let story: Vec<&str> = (0..20_000).map(|i| words[(i * i + i / 7) % words.len()]).collect();
    std::fs::write(&text, story.join(" "))?;
    let paths = vec![text];
    Ok(CostArgs { short: paths.clone(), long: paths.clone(), dictionary: paths, records: 2000, mebibytes: 1, ..args })
}

/// Texts, and the same tokenized.
struct Records {
    texts: Vec<String>,
    examples: Vec<Example>,
}

impl Records {
    fn read(paths: &[PathBuf], tokenizer: &Tokenizer, least_tokens: usize) -> anyhow::Result<Self> {
        let end_token = tokenizer.eos().context("the vocabulary has no end-of-text token")?;
        let (mut texts, mut examples) = (Vec::new(), Vec::new());
        for line in corpus::interleave(corpus::read(paths)?) {
            let example = line.example(tokenizer, end_token)?;
            if example.tokens().len() >= least_tokens {
                texts.push(line.text());
                examples.push(example);
            }
        }
        match examples.is_empty() {
            true => bail!("no record of {least_tokens} tokens or more in {paths:?}"),
            false => Ok(Self { texts, examples }),
        }
    }
}

fn coding_cost(
    name: &str,
    records: &Records,
    dictionary: &[u8],
    folder: &Path,
    [goal, aim]: [f64; 2],
) -> anyhow::Result<CodingCost> {
    let tokens: usize = records.examples.iter().map(|example| example.tokens().len()).sum();
    let bits = |bytes: usize| bytes as f64 * 8.0 / tokens as f64;
    let mut log = open_unsynced_log(&folder.join(format!("{name}.log")))?;
    for batch in records.examples.chunks(BATCH) {
        log.append(batch)?;
    }
    let ours = log.bytes() as usize;
    let leb128 = records.examples.iter().map(|example| coding::leb128_bytes(example.tokens())).sum();
    let batches: Vec<String> = records.texts.chunks(BATCH).map(|batch| batch.join("\n")).collect();
    let bits_per_token = vec![
        ("mynah replay log, all told".to_owned(), bits(ours)),
        ("ids in LEB128".to_owned(), bits(leb128)),
        ("ids in 17 bits".to_owned(), coding::PACKED_BITS),
        ("text, zstd -19".to_owned(), bits(coding::zstd_bytes(&records.texts, &[])?)),
        ("text, zstd -19 with dictionary".to_owned(), bits(coding::zstd_bytes(&records.texts, dictionary)?)),
        ("text of 16 records, zstd -19".to_owned(), bits(coding::zstd_bytes(&batches, &[])?)),
        ("text of 16 records, zstd -19 with dictionary".to_owned(), bits(coding::zstd_bytes(&batches, dictionary)?)),
        ("text, lz4".to_owned(), bits(coding::lz4_bytes(&records.texts))),
        ("text of 16 records, lz4".to_owned(), bits(coding::lz4_bytes(&batches))),
    ];
    let count = records.examples.len();
    Ok(CodingCost {
        records: name.to_owned(),
        count,
        mean_tokens: tokens as f64 / count as f64,
        bits_per_token,
        goal,
        aim,
    })
}

fn writing_cost(
    engine: Engine,
    records: &'static str,
    examples: &[Example],
    records_per_batch: usize,
    folder: &Path,
) -> anyhow::Result<WritingCost> {
    let folder = tempfile::tempdir_in(folder)?;
    let mut store = engine.create(folder.path())?;
    let batches: Vec<&[Example]> = examples.chunks_exact(records_per_batch).cycle().take(BATCHES).collect();
    let payload: usize = batches.iter().flat_map(|batch| batch.iter()).map(|e| coding::leb128_bytes(e.tokens())).sum();
    let (before, started) = (Written::so_far()?, Instant::now());
    for batch in &batches {
        store.append(batch)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    // What a store writes when it is closed belongs to it.
    drop(store);
    let written = Written::since(before)?;
    let per_batch = |bytes: f64| bytes / batches.len() as f64;
    Ok(WritingCost {
        engine: engine.name(),
        records,
        records_per_batch,
        payload_bytes_per_batch: per_batch(payload as f64),
        device_bytes_per_batch: per_batch(written.to_device as f64),
        handed_over_bytes_per_batch: per_batch(written.handed_over as f64),
        amplification: written.handed_over as f64 / payload as f64,
        device_amplification: written.to_device as f64 / payload as f64,
        seconds_per_batch: per_batch(seconds),
    })
}

/// Fills a log, batch by batch, until `is_enough` of its records and bytes, and probes it in a process of its own.
fn scale_cost(
    what: String,
    examples: &[Example],
    folder: &Path,
    is_enough: impl Fn(usize, u64) -> bool,
) -> anyhow::Result<ScaleCost> {
    let file = folder.join("scale.log");
    let mut log = open_unsynced_log(&file)?;
    let mut rounds = examples.chunks(BATCH).cycle();
    while !is_enough(log.len(), log.bytes()) {
        log.append(rounds.next().context("no examples")?)?;
    }
    drop(log);
    let output = Command::new(std::env::current_exe()?).arg("probe").arg(&file).output()?;
    if !output.status.success() {
        bail!("probing failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    std::fs::remove_file(&file)?;
    Ok(ScaleCost { what, probe: serde_json::from_slice(&output.stdout)? })
}

fn probe(file: &Path) -> anyhow::Result<Probe> {
    let before = resident_bytes()?;
    let started = Instant::now();
    let mut log = open_log(file)?;
    let open_seconds = started.elapsed().as_secs_f64();
    let memory_bytes = resident_bytes()?.saturating_sub(before);
    let records = log.len();
    let ids: Vec<(ExampleId, String)> = log.iter().map(|record| (record.id, record.task.to_owned())).collect();
    let capacity = u32::try_from(records)?;
    let memory = Memory::rebuild(
        Policy::Reservoir,
        capacity,
        1,
        ids.iter().map(|(id, task)| Newcomer { id: *id, task, nll: 0.0 }),
    );
    let (mut draws, mut reads) = (Vec::new(), Vec::new());
    for step in 0..101 {
        let started = Instant::now();
        let drawn = memory.draw(BATCH, 1, step, |_| false);
        draws.push(started.elapsed().as_secs_f64());
        for id in drawn {
            std::hint::black_box(log.read(id)?);
        }
        reads.push(started.elapsed().as_secs_f64());
    }
    Ok(Probe {
        records,
        log_bytes: log.bytes(),
        open_seconds,
        memory_bytes_per_record: memory_bytes as f64 / records as f64,
        draw_seconds: Spread::of(&draws),
        draw_and_read_seconds: Spread::of(&reads),
    })
}

fn resident_bytes() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("this needs Linux")?;
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).map(|rest| rest.trim_end_matches("kB"));
    let kibibytes: u64 = kibibytes.context("no VmRSS")?.trim().parse()?;
    Ok(kibibytes * 1024)
}

fn text(outcome: &Outcome) -> String {
    let mut parts = Vec::new();
    for cost in &outcome.coding {
        let rows: Vec<Vec<String>> =
            cost.bits_per_token.iter().map(|(name, bits)| vec![name.clone(), format!("{bits:.2}")]).collect();
        let CodingCost { records, count, mean_tokens, goal, aim, .. } = cost;
        parts.push(format!(
            "{count} {records} records of {mean_tokens:.1} tokens; goal {goal}, aim {aim} bits per token\n{}",
            table(&["", "bits per token"], &rows)
        ));
    }
    let rows: Vec<Vec<String>> = outcome
        .writing
        .iter()
        .map(|cost| {
            vec![
                cost.engine.to_owned(),
                format!("{} {}", cost.records_per_batch, cost.records),
                format!("{:.0}", cost.payload_bytes_per_batch),
                format!("{:.0}", cost.handed_over_bytes_per_batch),
                format!("{:.0}", cost.device_bytes_per_batch),
                format!("{:.2}", cost.amplification),
                format!("{:.2}", cost.device_amplification),
                format!("{:.2}", cost.seconds_per_batch * 1e3),
            ]
        })
        .collect();
    let header = [
        "bytes of a batch",
        "records",
        "payload",
        "handed over",
        "to the device",
        "handed over / payload",
        "device / payload",
        "ms",
    ];
    parts.push(format!(
        "goal: 2.0 bytes a payload byte at 16 records; a device writes whole pages of 4 KiB\n{}",
        table(&header, &rows)
    ));
    let rows: Vec<Vec<String>> = outcome
        .scale
        .iter()
        .map(|ScaleCost { what, probe }| {
            vec![
                what.clone(),
                probe.records.to_string(),
                format!("{:.1}", probe.log_bytes as f64 / 1e6),
                format!("{:.3}", probe.open_seconds),
                format!("{:.1}", probe.memory_bytes_per_record),
                format!("{:.1}", probe.draw_seconds.median * 1e6),
                format!("{:.1}", probe.draw_and_read_seconds.median * 1e6),
            ]
        })
        .collect();
    let header = ["store", "records", "MB", "s to open", "memory / record", "µs to draw 16", "µs with reading"];
    let goals = "goals: 64 MiB open in 0.5 s, 16 drawn in 1000 µs, 32 bytes of memory a record";
    parts.push(format!("{goals}\n{}", table(&header, &rows)));
    parts.join("\n\n")
}
