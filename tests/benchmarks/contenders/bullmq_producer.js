// Adds one job a callback, one by one or in bulk: what producer.py describes, for Node.
const fs = require('node:fs');
const readline = require('node:readline');
const { setTimeout: sleep } = require('node:timers/promises');
const { Queue } = require('bullmq');

// No history: a finished job is removed, the cheapest that BullMQ can do.
const OPTIONS = {
  attempts: 4,
  backoff: { type: 'exponential', delay: 1000 },
  removeOnComplete: true,
};

const now = () => Number(process.hrtime.bigint()); // CLOCK_MONOTONIC

class Books {
  constructor(settings, job) {
    this.settings = settings;
    this.job = job;
    this.word = Buffer.alloc(8);
    this.deliveredBefore = this.delivered();
    this.began = now();
    this.sent = [];
    this.accepted = [];
  }

  delivered() {
    fs.readSync(this.settings.file, this.word, 0, 8, 0);
    return Number(this.word.readBigUInt64LE());
  }

  isDue() {
    if (this.job.rate !== null) {
      return now() >= this.began + (this.sent.length / this.job.rate) * 1e9;
    }
    const outstanding = this.sent.length - (this.delivered() - this.deliveredBefore);
    return outstanding + this.settings.size <= this.job.bound;
  }

  // Hands the next callbacks in; resolves once they are accepted.
  async add(queue) {
    const { settings, job } = this;
    const first = this.sent.length;
    const at = now();
    const jobs = [];
    for (let k = 0; k < settings.size; k++) {
      const number = job.first + first + k;
      const digits = String(number).padStart(10, '0');
      const host = (number % settings.hosts) + 1;
      const url = `http://127.0.0.${host}:${settings.receiver_port}/c/${digits}`;
      const body = settings.target.body.replace('##########', digits);
      jobs.push({ name: 'callback', data: { url, body }, opts: OPTIONS });
      this.sent.push(at);
      this.accepted.push(0);
    }
    if (jobs.length === 1) {
      await queue.add(jobs[0].name, jobs[0].data, jobs[0].opts);
    } else {
      await queue.addBulk(jobs);
    }
    this.accepted.fill(now(), first, first + jobs.length);
  }

  close() {
    const data = Buffer.alloc(16 * this.sent.length);
    this.sent.forEach((at, k) => {
      data.writeBigUInt64LE(BigInt(at), 16 * k);
      data.writeBigUInt64LE(BigInt(this.accepted[k]), 16 * k + 8);
    });
    const file = fs.openSync(this.settings.stamps, fs.constants.O_WRONLY | fs.constants.O_CREAT);
    fs.writeSync(file, data, 0, data.length, 16 * this.job.first);
    fs.closeSync(file);
    return { taken: this.sent.length, refused: 0 };
  }
}

async function closed(queue, books) {
  const work = async () => {
    while (now() < books.job.until) {
      if (books.isDue()) await books.add(queue);
      else await sleep(1);
    }
  };
  await Promise.all(Array.from({ length: books.settings.connections }, work));
}

async function open(queue, books) {
  const running = new Set();
  while (now() < books.job.until) {
    while (books.isDue()) {
      const adding = books.add(queue).finally(() => running.delete(adding));
      running.add(adding);
    }
    await sleep(1);
  }
  await Promise.all(running);
}

async function main() {
  let settings = null;
  let queue = null;
  for await (const line of readline.createInterface({ input: process.stdin })) {
    if (settings === null) {
      settings = JSON.parse(line);
      settings.file = fs.openSync(settings.arrivals, 'r');
      queue = new Queue('callbacks', { connection: settings.target.broker });
      continue;
    }
    const job = JSON.parse(line);
    const books = new Books(settings, job);
    await (job.rate === null ? closed(queue, books) : open(queue, books));
    console.log(JSON.stringify(books.close()));
  }
  await queue.close();
}

main();
