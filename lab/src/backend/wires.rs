//! Bad wires between machines made of namespaces: what `partition`, `loss`, `delay` and `heal` do
//! to the underlay. What is wrong at the moment lies in the lab's folder.

use std::{path::PathBuf, time::Duration};

use super::Namespaces;
use crate::{Error, Result, backend::Backend, fault::state::Wires};

impl Namespaces {
    fn wires_file(&self) -> PathBuf {
        self.layout().root.join("wires.json")
    }

    /// What is wrong with the wires.
    pub fn wires(&self) -> Result<Wires> {
        Wires::load(&self.wires_file())
    }

    fn indices(&self, nodes: &[String]) -> Result<Vec<usize>> {
        nodes.iter().map(|n| self.topology().index(n)).collect()
    }

    pub(super) fn split(&self, groups: &[Vec<String>]) -> Result<()> {
        let groups = groups.iter().map(|g| self.indices(g)).collect::<Result<Vec<_>>>()?;
        self.rejoin()?;
        // Remembered first: a node that starts meanwhile comes to its own side.
        self.change(|wires| wires.groups = groups.iter().map(|g| g.iter().copied().collect()).collect())?;
        self.underlay()?.partition(groups)
    }

    pub(super) fn cut(&self, from: &[String], to: &[String]) -> Result<()> {
        let (from, to) = (self.indices(from)?, self.indices(to)?);
        self.rejoin()?;
        self.change(|wires| wires.cut(&from, &to))
    }

    pub(super) fn lose_packets(&self, node: &str, share: u32) -> Result<()> {
        let index = self.topology().index(node)?;
        self.change(|wires| wires.lose(index, share))
    }

    /// Tried before it is remembered: a kernel may be unable to.
    pub(super) fn hold_up(&self, node: &str, by: Duration) -> Result<()> {
        let index = self.topology().index(node)?;
        self.underlay()?.delay(index, self.init(node)?.map(|init| init.pid), by)?;
        self.change(|wires| wires.delay(index, by))
    }

    /// A node that was just plugged in has a new port: its delay is made anew. Its rules are the
    /// switch's, and hold by its port's name.
    pub(super) fn delay_again(&self, node: &str) -> Result<()> {
        let index = self.topology().index(node)?;
        match self.wires()?.delay_millis.get(&index) {
            Some(millis) => self.hold_up(node, Duration::from_millis((*millis).into())),
            None => Ok(()),
        }
    }

    /// Ends what an earlier partition did: everybody on one switch, nothing cut. Loss and delay
    /// stay.
    fn rejoin(&self) -> Result<()> {
        // First: a node that starts meanwhile is plugged in as the file says.
        self.change(Wires::rejoin)?;
        let mut on = Vec::new();
        for node in &self.topology().nodes {
            if self.init(&node.name)?.is_some() {
                on.push(self.topology().index(&node.name)?);
            }
        }
        self.underlay()?.heal(on)
    }

    pub(super) fn mend_all(&self) -> Result<()> {
        self.rejoin()?;
        for index in self.wires()?.delay_millis.into_keys() {
            let node = self.topology().nodes.get(index).map(|n| n.name.clone());
            if let Some(node) = node {
                self.hold_up(&node, Duration::ZERO)?;
            }
        }
        self.change(|wires| *wires = Wires::default())
    }

    fn change(&self, act: impl FnOnce(&mut Wires)) -> Result<()> {
        let before = self.wires()?;
        let mut wires = before.clone();
        act(&mut wires);
        if wires == before {
            return Ok(());
        }
        if wires.rules() != before.rules() {
            self.underlay()?.filter(wires.rules())?;
        }
        wires.store(&self.wires_file())
    }
}

/// What a backend answers that cannot do a fault.
pub(super) fn cannot(what: &str) -> Result<()> {
    Err(Error::Lacking {
        what: format!("these machines cannot {what}"),
        how: "a lab in namespaces (`trellis-lab up`) can".to_owned(),
    })
}
