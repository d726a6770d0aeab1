"""What each picture shows, said by a vision-language model, once per picture."""
