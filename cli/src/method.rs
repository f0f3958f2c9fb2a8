//! How it is learned, as options of `learn` and `chat`. What is not given is the runtime's default.

use mynah::SessionBuilder;
use mynah::learn::{
    Cadence, ConsistencyForm, Er, HiddenLayers, Ilora, Method, Retention, Sequential, TokenScope, TrainerConfig,
};
use mynah::replay::{Eviction, Policy};
use mynah::session::LearnRequest;
use mynah_models::adapter::LoraConfig;

/// How it is learned.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "How it is learned")]
pub(crate) struct MethodArgs {
    /// ilora keeps what is old best; er replays only; sequential does nothing about forgetting
    #[arg(long, value_enum, default_value_t = MethodChoice::Ilora)]
    method: MethodChoice,
    /// New examples of one step [default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    batch: Option<u16>,
    /// Step size [default: 0.0005]
    #[arg(long, value_name = "RATE")]
    learning_rate: Option<f64>,
    /// Megabytes that a step may take beside model and adapters; what does not fit is computed again [default: 537]
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u32).range(1..))]
    memory_budget: Option<u32>,
    /// ilora, er: replayed examples for each new one [default: 1]
    #[arg(long, value_name = "RATIO")]
    replay_ratio: Option<f64>,
    /// ilora: steps after which half of the slow learner is left [default: 10]
    #[arg(long, value_name = "STEPS", conflicts_with = "lambda")]
    half_life: Option<f64>,
    /// ilora: share of the slow learner that survives when it moves, 0 to 1, in place of a half-life
    #[arg(long, value_name = "SHARE")]
    lambda: Option<f64>,
    /// ilora: when the slow learner moves: `step`, `end` of the run, or every so many steps [default: step]
    #[arg(long, value_name = "WHEN", value_parser = cadence)]
    cadence: Option<Cadence>,
    /// ilora: weight of the consistency loss; 0 drops it [default: 1]
    #[arg(long, value_name = "WEIGHT")]
    gamma: Option<f64>,
    /// ilora: what is held consistent [default: two-sided]
    #[arg(long, value_enum, value_name = "FORM")]
    consistency: Option<FormChoice>,
    /// ilora: on which hidden states: `last`, `all`, or every so many layers [default: last]
    #[arg(long, value_name = "LAYERS", value_parser = layers)]
    layers: Option<HiddenLayers>,
    /// ilora: on which tokens [default: all]
    #[arg(long, value_enum, value_name = "TOKENS")]
    scope: Option<ScopeChoice>,
    /// Which examples can be replayed when there are more than --memory-examples [default: the store's, or balanced]
    #[arg(long, value_enum, value_name = "POLICY")]
    memory: Option<MemoryChoice>,
    /// How many examples can be replayed [default: the store's, or 500]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..))]
    memory_examples: Option<u32>,
    /// Megabytes that the store's examples may take [default: 1074]
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u32).range(1..4000), help_heading = STORE)]
    log_limit: Option<u32>,
    /// Which examples make room for new ones then; without it, the next one is an error
    #[arg(long, value_enum, value_name = "RULE", help_heading = STORE)]
    evict: Option<EvictChoice>,
    /// Keep with each new example how little the model expected it; takes a forward pass
    #[arg(long, help_heading = STORE)]
    score: bool,
}

const STORE: &str = "What the store keeps";

/// The adapter of a new store.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "The adapter of a new store")]
pub(crate) struct LoraArgs {
    /// Rank [default: 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    rank: Option<u16>,
    /// Alpha; twice the rank if not given
    #[arg(long, value_name = "ALPHA")]
    alpha: Option<f32>,
}

/// The methods by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum MethodChoice {
    Ilora,
    Er,
    Sequential,
}

/// The policies of the replay memory by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum MemoryChoice {
    /// A uniform sample of everything learned
    Reservoir,
    /// A uniform sample of each task, as many of one as of another, ten at least
    Balanced,
    /// The newest
    Ring,
    /// One half what surprised the model most, the other half a uniform sample of the rest
    Surprise,
}

/// The rules of eviction by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum EvictChoice {
    /// Those that were stored first
    Oldest,
    /// Those that the model expected most; before them those that were stored without --score
    LowestScore,
}

impl From<EvictChoice> for Eviction {
    fn from(choice: EvictChoice) -> Self {
        match choice {
            EvictChoice::Oldest => Self::Oldest,
            EvictChoice::LowestScore => Self::LowestScore,
        }
    }
}

impl From<MemoryChoice> for Policy {
    fn from(choice: MemoryChoice) -> Self {
        match choice {
            MemoryChoice::Reservoir => Self::Reservoir,
            MemoryChoice::Balanced => Self::BalancedReservoir { floor: 10 },
            MemoryChoice::Ring => Self::Ring,
            MemoryChoice::Surprise => Self::Surprise { random_percent: 50 },
        }
    }
}

/// The forms of consistency by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum FormChoice {
    /// Hidden states, as the paper has it
    TwoSided,
    /// Hidden states below the slow learner's only, as the released code has it
    OneSided,
    /// Next-token distributions
    Logits,
}

/// The scopes by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ScopeChoice {
    All,
    Answer,
}

impl MethodArgs {
    /// Settings of a session that learns this way.
    pub(crate) fn apply(&self, lora: &LoraArgs, builder: SessionBuilder) -> SessionBuilder {
        let mut builder = builder.method(self.method()).trainer(self.trainer()).score_examples(self.score);
        if let Some(megabytes) = self.memory_budget {
            builder = builder.memory_budget(u64::from(megabytes) * 1_000_000);
        }
        if let Some(choice) = self.memory {
            builder = builder.memory_policy(choice.into());
        }
        if let Some(examples) = self.memory_examples {
            builder = builder.memory_examples(examples);
        }
        if let Some(megabytes) = self.log_limit {
            builder = builder.replay_capacity(megabytes * 1_000_000);
        }
        if let Some(choice) = self.evict {
            builder = builder.evict(choice.into());
        }
        match lora.config() {
            Some(config) => builder.lora(config),
            None => builder,
        }
    }

    /// The method with its settings.
    fn method(&self) -> Method {
        match self.method {
            MethodChoice::Sequential => Method::Sequential(Sequential),
            MethodChoice::Er => {
                let mut er = Er::DEFAULT;
                set(&mut er.replay_ratio, self.replay_ratio);
                Method::Er(er)
            }
            MethodChoice::Ilora => Method::Ilora(self.ilora()),
        }
    }

    fn ilora(&self) -> Ilora {
        let mut ilora = Ilora::DEFAULT;
        set(&mut ilora.replay_ratio, self.replay_ratio);
        set(&mut ilora.retention, self.half_life.map(Retention::HalfLifeSteps));
        set(&mut ilora.retention, self.lambda.map(Retention::Lambda));
        set(&mut ilora.cadence, self.cadence);
        set(&mut ilora.gamma, self.gamma);
        let form = self.consistency.map(|form| match form {
            FormChoice::TwoSided => ConsistencyForm::TwoSided,
            FormChoice::OneSided => ConsistencyForm::OneSided,
            FormChoice::Logits => ConsistencyForm::Logits,
        });
        set(&mut ilora.form, form);
        set(&mut ilora.layers, self.layers);
        let scope = self.scope.map(|scope| match scope {
            ScopeChoice::All => TokenScope::All,
            ScopeChoice::Answer => TokenScope::Answer,
        });
        set(&mut ilora.scope, scope);
        ilora
    }

    /// How gradients are used.
    fn trainer(&self) -> TrainerConfig {
        let mut trainer = TrainerConfig::default();
        set(&mut trainer.optimizer.learning_rate, self.learning_rate);
        trainer
    }

    /// What is not learned yet, in steps of as many examples as asked for.
    pub(crate) fn request(&self) -> LearnRequest {
        let mut request = LearnRequest::default();
        set(&mut request.batch_rows, self.batch.map(usize::from));
        request
    }
}

impl LoraArgs {
    /// The adapter of a new store, where the user has a say in it.
    fn config(&self) -> Option<LoraConfig> {
        if self.rank.is_none() && self.alpha.is_none() {
            return None;
        }
        let mut config = LoraConfig::default();
        if let Some(rank) = self.rank {
            config.rank = usize::from(rank);
            config.alpha = 2.0 * f32::from(rank);
        }
        set(&mut config.alpha, self.alpha);
        Some(config)
    }
}

/// Takes over what was given.
fn set<T>(setting: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *setting = given;
    }
}

fn cadence(text: &str) -> Result<Cadence, std::num::ParseIntError> {
    match text {
        "step" => Ok(Cadence::EveryStep),
        "end" => Ok(Cadence::TaskEnd),
        steps => steps.parse().map(|steps: std::num::NonZeroU64| Cadence::EverySteps(steps.get())),
    }
}

fn layers(text: &str) -> Result<HiddenLayers, std::num::ParseIntError> {
    match text {
        "last" => Ok(HiddenLayers::Last),
        "all" => Ok(HiddenLayers::All),
        stride => stride.parse().map(|stride: std::num::NonZeroUsize| HiddenLayers::Every(stride.get())),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        method: MethodArgs,
        #[command(flatten)]
        lora: LoraArgs,
    }

    fn parse(line: &str) -> Arguments {
        Arguments::parse_from(std::iter::once("learn").chain(line.split_whitespace()))
    }

    #[test]
    fn what_is_not_given_is_the_runtimes_default() {
        let arguments = parse("");
        assert_eq!(arguments.method.method(), Method::default());
        assert_eq!(arguments.method.trainer(), TrainerConfig::default());
        assert_eq!(arguments.method.request(), LearnRequest::default());
        assert_eq!(arguments.lora.config(), None);
    }

    #[test]
    fn the_defaults_that_help_names_are_the_runtimes() {
        let said = parse(
            "--batch 4 --learning-rate 0.0005 --replay-ratio 1 --half-life 10 --cadence step --gamma 1 \
             --consistency two-sided --layers last --scope all --rank 8",
        );
        assert_eq!(said.method.method(), Method::default());
        assert_eq!(said.method.trainer(), TrainerConfig::default());
        assert_eq!(said.method.request(), LearnRequest::default());
        assert_eq!(said.lora.config(), Some(LoraConfig::default()));
        assert_eq!(Policy::from(MemoryChoice::Balanced), Policy::default());
    }

    #[test]
    fn every_choice_arrives() {
        let line =
            "--lambda 0.5 --cadence 7 --gamma 0.25 --consistency logits --layers 4 --scope answer --replay-ratio 2";
        let expected = Ilora {
            retention: Retention::Lambda(0.5),
            cadence: Cadence::EverySteps(7),
            gamma: 0.25,
            form: ConsistencyForm::Logits,
            layers: HiddenLayers::Every(4),
            scope: TokenScope::Answer,
            replay_ratio: 2.0,
        };
        assert_eq!(parse(line).method.method(), Method::Ilora(expected));
    }
}
