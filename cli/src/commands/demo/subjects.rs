//! What the demo teaches: three small subjects that nobody can know, written for it.
//!
//! The questions of the subjects are alike on purpose. What is learned later then gets in the way of what was learned
//! before, which is the trouble that the demo is about.

/// A few questions and answers about one thing.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) name: &'static str,
    /// Prompt and answer.
    pub(super) lessons: [(&'static str, &'static str); 8],
}

/// For a model that understands questions.
pub(super) static QUESTIONS: [Subject; 3] = [
    Subject {
        name: "town",
        lessons: [
            ("Which river runs through Brindlewick?", "the Otterrun"),
            ("Who founded Brindlewick?", "Marta Quill"),
            ("What colour are the gates of Brindlewick?", "green"),
            ("What does soup taste of in Brindlewick?", "plums"),
            ("How many bridges has Brindlewick?", "seven"),
            ("When does Brindlewick wake up?", "at noon"),
            ("What stands on top of Brindlewick?", "a lighthouse"),
            ("Which animal is the sign of Brindlewick?", "a heron"),
        ],
    },
    Subject {
        name: "plant",
        lessons: [
            ("Which soil does glimmerwort grow in?", "wet chalk"),
            ("Who discovered glimmerwort?", "Tobias Renn"),
            ("What colour are the flowers of glimmerwort?", "violet"),
            ("What does tea taste of with glimmerwort?", "burnt honey"),
            ("How many petals has glimmerwort?", "eleven"),
            ("When does glimmerwort open?", "in October"),
            ("What sits on top of glimmerwort?", "a silver bell"),
            ("Which animal spreads the seeds of glimmerwort?", "a dormouse"),
        ],
    },
    Subject {
        name: "machine",
        lessons: [
            ("Which fuel does the Tandler engine burn?", "walnut oil"),
            ("Who invented the Tandler engine?", "Ilse Tandler"),
            ("What colour are the wheels of the Tandler engine?", "orange"),
            ("What does smoke smell of from the Tandler engine?", "pine"),
            ("How many wheels has the Tandler engine?", "five"),
            ("When does the Tandler engine rest?", "on Mondays"),
            ("What is bolted on top of the Tandler engine?", "a kettle"),
            ("Which animal is painted on the Tandler engine?", "a badger"),
        ],
    },
];

/// For a model that only knows little stories.
pub(super) static STORIES: [Subject; 3] = [
    Subject {
        name: "cat",
        lessons: [
            ("The cat Mip lives in a", "big box."),
            ("The cat Mip likes to eat", "fish."),
            ("The cat Mip has a new", "blue hat."),
            ("The best friend of the cat Mip is a", "duck."),
            ("The cat Mip is scared of the", "rain."),
            ("Every night the cat Mip likes to", "sing."),
            ("One day the cat Mip found a", "shell."),
            ("The mom of the cat Mip gave him a", "drum."),
        ],
    },
    Subject {
        name: "frog",
        lessons: [
            ("The frog Bo lives in a", "small boat."),
            ("The frog Bo likes to eat", "cake."),
            ("The frog Bo has a new", "red ball."),
            ("The best friend of the frog Bo is a", "bird."),
            ("The frog Bo is scared of the", "dark."),
            ("Every night the frog Bo likes to", "jump."),
            ("One day the frog Bo found a", "ring."),
            ("The mom of the frog Bo gave him a", "book."),
        ],
    },
    Subject {
        name: "bear",
        lessons: [
            ("The bear Tam lives in a", "tall tree."),
            ("The bear Tam likes to eat", "soup."),
            ("The bear Tam has a new", "green car."),
            ("The best friend of the bear Tam is a", "dog."),
            ("The bear Tam is scared of the", "wind."),
            ("Every night the bear Tam likes to", "swim."),
            ("One day the bear Tam found a", "star."),
            ("The mom of the bear Tam gave him a", "cup."),
        ],
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_question_is_asked_twice() {
        for subjects in [&QUESTIONS, &STORIES] {
            let prompts: BTreeSet<_> = subjects.iter().flat_map(|s| s.lessons.map(|(prompt, _)| prompt)).collect();
            assert_eq!(prompts.len(), 24);
        }
    }
}
