// The worker of the BullMQ contender, as a team would write it: it signs and POSTs with undici.
const { createHmac } = require('node:crypto');
const { Worker } = require('bullmq');
const { Agent, request } = require('undici');

const SECRET = 'whsec_benchmark_0123456789abcdef';
const agent = new Agent({ keepAliveTimeout: 60_000 });

async function deliver(job) {
  const { url, body } = job.data;
  const signature = createHmac('sha256', SECRET).update(body).digest('hex');
  const answer = await request(url, {
    method: 'POST',
    body,
    headers: { 'content-type': 'application/json', 'x-signature': signature },
    headersTimeout: 30_000,
    dispatcher: agent,
  });
  await answer.body.dump();
  if (answer.statusCode < 200 || answer.statusCode > 299) {
    throw new Error(`answered ${answer.statusCode}`);
  }
}

const worker = new Worker('callbacks', deliver, {
  connection: { ...JSON.parse(process.env.BENCHMARK_BROKER), maxRetriesPerRequest: null },
  concurrency: Number(process.env.BENCHMARK_CONCURRENCY),
});
worker.on('error', (error) => console.error(error));
worker.on('failed', (job, error) => console.error('failed', error));
process.on('SIGTERM', async () => {
  await worker.close();
  process.exit(0);
});
