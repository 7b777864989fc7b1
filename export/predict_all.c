/* Appended to a header, for Python to call; CLASSES is the number of classes. */
void predict_all(const unsigned char *images, long count, float *logits)
{
    static struct net_scratch scratch;
    net_logit scores[CLASSES];

    for (; count > 0; count--, images += 784) {
        net_predict(images, scores, &scratch);
        for (int i = 0; i < CLASSES; i++)
            *logits++ = (float)scores[i] / (float)NET_ONE;
    }
}
